"""How the cells of a study are run: how many side by side, on what, and how long it will take."""
