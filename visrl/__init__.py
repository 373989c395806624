"""visrl: evaluate and train vision-language models that look, then answer.

Import-light on purpose: lmms-eval imports entry points on every start, and ``visrl-eval --help`` must not load torch.
"""

__version__ = "0.1.0"
