"""What a run is on disk: its settings, folder, logs, checkpoint, seeds and versions.

Public: `config.Config` and `layers.layered`, `folder.RunFolder`, `checkpoint`, `seeds.derive` and `generator`,
`versions.versions`. Nothing is imported here: `config` is read before torch, which takes two seconds.
"""
