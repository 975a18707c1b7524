"""Users' own scripts: checked, isolated, their outputs judged."""
