"""The configuration tree: every knob, its parser, its checks; pure data that imports no component."""
