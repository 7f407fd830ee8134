"""The process and its files: nothing here knows a model, a state or a config."""
