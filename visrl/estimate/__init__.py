"""What a run will take, worked out from a model's config before anything is loaded: memory, tokens, hours, disk, commands.

``shape`` sizes of a model from its config · ``lengths`` tokens of laid-out questions · ``memory``, ``work`` the formulae of
docs/estimating.md · ``phases`` a recipe or tasks -> phases · ``launch`` commands and SLURM scripts · ``show`` and ``cli``.
"""
