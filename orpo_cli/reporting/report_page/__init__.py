"""The page of a run, report.html: figures as plain numbers, the facts around them, and one self-contained file."""
