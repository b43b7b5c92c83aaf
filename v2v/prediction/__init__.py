"""Signal predictors: the next frames of a signal, their training and their measures."""
