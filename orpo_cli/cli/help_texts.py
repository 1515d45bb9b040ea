"""What the help of each command says before its keys, or as a whole."""

from orpo_cli.config.keys import FREE_KEYS

_TRAIN = """\
orpo train [FILE.yaml] [FLAGS] [KEY=VALUE ...]: fine-tune a language model on preferences with ORPO

  orpo train                                            the built-in model and preferences
  orpo train model=DIR_OR_HUB_ID data=FILE lambda=0.1   your own: a file, folder, pattern, list, hub id, or - for a pipe
  orpo train optimizer=muon optimizer.lr=1e-4           another option of a group, another value of a key
  orpo train -m lambda=0.05,0.1 optimizer.lr=1e-5,2e-5  a sweep over all combinations
  orpo train -m sweep.jobs=4 lambda=0.05,0.1,0.2,0.5    the same, four runs at a time; in the queue of Slurm with
                                                        hydra/launcher=submitit_slurm hydra.launcher.partition=NAME
  orpo train -m 'lambda=interval(0.05,1)' sweep.trials=20    a search: each run learns from those before
  orpo train +experiment=mistral_orpo_beta data=FILE    a recipe
  orpo train my.yaml lambda=0.2                         a file of the same keys; values typed after it override it
  orpo train ... output_dir=DIR resume=auto             resume what is in DIR, or begin there: for jobs that restart
  orpo resume RUN_DIR [KEY=VALUE ...]                   resume a run from its last checkpoint, or a sweep

Flags
  -m, --multirun       sweep over comma-separated values; each job has its own folder and process
  --cfg job            print the composed configuration, with the file or the command line that each value comes from,
                       and stop; --resolve fills in references, --package GROUP selects
  --info               print how it was composed and stop
  --config-dir DIR     add your own groups and options
  --config-name NAME   another root than train.yaml

A file of settings is plain YAML of the keys below, without a defaults list: `model: ./dir`, `data: prefs.json`,
`optimizer: {name: sgd, lr: 1e-3}`, `lambda: 0.1`. It means what the same words would mean here; paths start from the
current directory. Another option typed after it (optimizer=adamw) replaces the whole section of the file.

A plain word after model= or data= is the option of that name if there is one, else the file or folder of that name;
./NAME is always a file or folder, ORG/NAME one or a hub id.
"""

_CHECK = """\
orpo check [FILE.yaml] [FLAGS] [KEY=VALUE ...]: what is in preference data, and what training would make of it

  orpo check data=FILE                                  the tokens of the built-in model
  orpo check data=FILE model=DIR_OR_HUB_ID              of yours; its weights are not loaded
  orpo check data=FILE check.fail_on=[duplicates,refusals]   ends with 65 where one of these is found
  orpo check data=FILE --json                           for machines

Takes every key of `orpo train`, and its file of settings, so that it sees what a run with the same would see. Ends
with 0, or with 65 where rows are invalid.
"""

_EVALUATE = """\
orpo evaluate [MODEL] [FILE.yaml] [FLAGS] [KEY=VALUE ...]: how a model scores held-out pairs, with intervals

  orpo evaluate RUN_DIR                                 on the pairs that the run held out, against what it began with
  orpo evaluate RUN_DIR data=FILE                       on all pairs of another file
  orpo evaluate model=DIR_OR_HUB_ID data=FILE against=MODEL   any model against any other
  orpo evaluate RUN_DIR --json                          one object for machines
  orpo evaluate RUN_DIR scores=pairs.parquet            what each pair scored

Takes every key of `orpo train` that says what is scored and how: model, data, loss, trainer.eval_max_tokens, .device,
.precision. With data.eval_fraction or data.eval_path only the pairs that these hold out are scored. For a run, the data
is tokenized as the run tokenized its own. Nothing is trained. docs/evaluation.md explains the numbers.
"""

_GENERATE = """\
orpo generate [MODEL] [FILE.yaml] [KEY=VALUE ...] [--json]: answers, before and after training

  orpo generate model=RUN_DIR prompt="Why is the sky blue?"    the base and the trained model, side by side
  orpo generate model=RUN_DIR prompts=FILE                     lines of text, or rows of JSON, CSV or Parquet
  ... | orpo generate model=RUN_DIR                            the same from a pipe
  orpo generate model=RUN_DIR prompts=FILE --json              a line {"prompt", "base", "tuned"} for each prompt
  orpo generate model=DIR_OR_HUB_ID prompt="..." against=none  one answer, of any model
  orpo generate model=RUN_DIR prompt="..." temperature=0.7 seed=3    drawn; the same seed draws the same

Prompts are put into the chat template as in training, and an answer ends at the token that ended answers there.
"""

_CHAT = """\
orpo chat MODEL [KEY=VALUE ...]: a conversation with a trained model

  orpo chat RUN_DIR                            with the model of a run
  orpo chat RUN_DIR temperature=0.7 seed=3     answers that are drawn
  orpo chat DIR_OR_HUB_ID against=MODEL        with any model; /base asks another

In it, /base shows what the model before training answers to your last message, /reset forgets what was said, /quit or
Ctrl-D ends. Ctrl-C ends an answer. Each line of a pipe is one message.
"""

_RESUME = f"""\
orpo resume RUN_DIR [KEY=VALUE ...]: resume a run from its last whole checkpoint, or a sweep

  orpo resume RUN_DIR                            the same steps, to the byte, as if it had not ended
  orpo resume RUN_DIR trainer.max_time=2h        with other values of keys that decide nothing that is computed
  orpo resume RUN_DIR trainer.epochs=3           for longer: the steps taken stay, the rest have the longer schedule
  orpo resume RUN_DIR model.path=DIR             the same model, moved; data.path and data.eval_path likewise
  orpo resume SWEEP_DIR                          the jobs that are not finished
  orpo resume SWEEP_DIR sweep.trials=40          of a search: more trials
  orpo train ... output_dir=DIR resume=auto      begins in DIR, or resumes there: for jobs that are restarted

A finished run is left alone, unless it is asked for more steps or another trainer.result; its model stays until the new
end. Changed data, model files and other keys are refused with the difference. Keys that may change:

{chr(10).join(f"  {key}" for key in FREE_KEYS)}
"""

_VERIFY = """\
orpo verify RUN_DIR [--replay N]: whether a run's checkpoints, records and model are whole

  orpo verify RUN_DIR               checksums, finite weights, an adapter that has learned, no step missing or twice
  orpo verify RUN_DIR --replay 3    takes 3 steps again from a checkpoint and compares them with what was recorded

Ends with 0, or with 65 where something is not as it should be. Changes nothing.
"""

_COMPARE = """\
orpo compare DIR... [--by METRIC] [--html FILE] [--csv FILE] [--markdown FILE] [--latex FILE] [--json]: runs compared

  orpo compare SWEEP_DIR                    the jobs of a sweep
  orpo compare RUN_DIR RUN_DIR SWEEP_DIR    any runs that were scored on the same held-out pairs
  orpo compare SWEEP_DIR --by nll           ranked by another metric: accuracy, balanced_accuracy, nll, margin, loss
  orpo compare SWEEP_DIR --csv runs.csv --markdown runs.md --latex runs.tex     for a spreadsheet, a page, a paper
  orpo compare SWEEP_DIR --html runs.html   a page with figures, each of which can be saved as SVG
  orpo compare SWEEP_DIR --json             one object for machines

Runs that differ in nothing but the seed are one recipe. Recipes that a paired test cannot tell apart share a rank, and
stand there in the order of their nll. Runs that cannot be compared, or have not finished, are named and never ranked.
Ends with 0, or with 65 where none of the finished runs can be ranked. docs/compare.md explains the table.
"""

_RUNS = """\
orpo runs [DIR]: the runs below a directory, `outputs` by default, the newest last

  finished      has taken its steps and left its model
  running       holds the lock of its folder
  stopped       was ended by a search, since another of its trials is better
  unfinished    can be resumed where a step is saved: orpo resume RUN_DIR
"""

_REPORT = """\
orpo report DIR: write report.html, the page of a run or of a sweep, into its folder again

  orpo report RUN_DIR               the settings, curves, margins, answers, the reading, what to type next
  orpo report SWEEP_DIR             places, accuracy against nll, what each setting did, curves of all runs

A run or a sweep that ends has written it already. Of one that has not ended, the page shows what there is so far. It is
one file that needs no other file and no network. Prints its path.
"""

_WATCH = """\
orpo watch RUN_DIR: show a run from its files, as its own screen does

  orpo watch RUN_DIR                one that works, here or in another window: follows it and ends when it does
  orpo watch RUN_DIR                one that has ended: its numbers, figures and summary

Ctrl-C ends the watching, not the run. Writes nothing.
"""

_EXPORT = """\
orpo export RUN_DIR to=DIR [KEY=VALUE ...]: write the model of a run in the form that others load

  orpo export RUN_DIR to=DIR                            as the run has left it, with end token, tokenizer, template
  orpo export RUN_DIR to=DIR merge=true dtype=bf16      a LoRA adapter merged into the weights, rounded to bf16
  orpo export RUN_DIR to=DIR checkpoint=best            after the best step, the last one, or step N; finished or not
  orpo export RUN_DIR to=DIR format=gguf quant=q8_0     one file for llama.cpp and Ollama, by llama.cpp's converter
  orpo export RUN_DIR to=DIR push=ORG/NAME              sent to the model hub as well, where only you see it
  orpo export RUN_DIR to=DIR push=ORG/NAME dry_run=true    shows what would be sent, and sends nothing

A whole model gets an Ollama Modelfile, and every export a card (README.md). Before the export is put in its place it is
loaded with transformers, or peft, and compared with the run's model on two of its pairs. Prints the directory.
"""

_DOCTOR = """\
orpo doctor [KEY=VALUE ...] [--json]: whether this machine is ready, line by line, and what each line means

  orpo doctor                                    versions, device, memory, disk, cache, hub, extras, processes
  orpo doctor model=DIR_OR_HUB_ID data=FILE      also whether a run of these would fit
  orpo doctor --json                             a list of objects for machines

Ends with 0, or with 65 where a line is marked with `!`. Changes nothing.
"""

_INIT = """\
orpo init DIR: make a working folder to begin in

  run.yaml                     the settings of a run, each common key explained: orpo train run.yaml
  prefs.json                   two preferences, to be replaced by your own
  conf/experiment/mine.yaml    settings under a name: orpo train run.yaml --config-dir conf +experiment=mine
  README.md                    the commands to begin with

Writes over nothing.
"""

_IMPORT = """\
orpo import FILE [RUN.yaml]: write run.yaml from the YAML of TRL, axolotl or LLaMA-Factory

  orpo import trl.yaml                    run.yaml here, each key with the name it came from
  orpo import axolotl.yml mine.yaml       into another file

Prints what differs in meaning, and what has no equivalent and is left out; both stand in run.yaml too. Settings of
DPO and of supervised fine-tuning are read as well; what ORPO has in their place is said. Writes over nothing.
"""

_COMPLETION = """\
orpo completion bash|zsh|fish: print the script that completes commands, keys, options and paths

  eval "$(orpo completion bash)"                                  in ~/.bashrc
  eval "$(orpo completion zsh)"                                   in ~/.zshrc, after `autoload -U compinit; compinit`
  orpo completion fish > ~/.config/fish/completions/orpo.fish     once
"""

TEXTS = {
    "train": _TRAIN, "check": _CHECK, "evaluate": _EVALUATE, "generate": _GENERATE, "chat": _CHAT, "export": _EXPORT,
    "resume": _RESUME, "verify": _VERIFY, "compare": _COMPARE, "runs": _RUNS, "watch": _WATCH, "report": _REPORT,
    "doctor": _DOCTOR, "init": _INIT, "import": _IMPORT, "completion": _COMPLETION,
}  # fmt: skip
"""Command -> its text."""
