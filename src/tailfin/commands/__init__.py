"""What each command does, as a function from settings to a value; nothing here reads words or prints.

`pretrain`, `measure` (advise and bench), `evaluate`, `report`, `lists` and `cache`; a study is a room of its own.
"""
