"""How a source becomes tar shards: each image, each shard, and the page beside them."""
