"""What the command line does: the trainer's commands, and those beside them. Each module has a `run(arguments)`."""
