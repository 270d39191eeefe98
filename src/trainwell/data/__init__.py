"""From text to token windows: corpora, tokenizers, shards, the prepared store, and the order of its windows."""
