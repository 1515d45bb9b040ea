"""What can be done with a run, without argv, Hydra or a screen: assembly.py sets it up, folder.py is its folder."""
