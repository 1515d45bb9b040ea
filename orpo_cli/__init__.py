"""orpo: fine-tune a language model on preferences with ORPO, from the command line."""

__version__ = "0.1.0"
