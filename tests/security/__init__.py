"""Attack and fault cases by id, each with a control that shows the attack succeed without the defence."""
