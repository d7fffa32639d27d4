"""The model under attack: checked, lent in evaluation mode, asked and counted, and stood in for where it has no gradient."""
