"""The trainer's forward and backward over the tokens that there are: no padding, a group's prompt once."""
