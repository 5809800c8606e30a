"""Knowledge editing: change a fact in a model's MLP matrices. Read editors.py first, then locate_then_edit.py."""
