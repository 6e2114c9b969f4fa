"""What `motet bench quality` trains on an owner's side: the experts, and the baselines that train as they do.

Stages (`motet.bench.quality.stages`), their inputs, what their spec holds, and the files that they leave:

    corpus      text (a file), more files whose held-out text is not trained on
                the [evaluation] table                      -> train.jsonl, validation.jsonl, test.jsonl
    specialist  anchor, public, domain; specialist (optional: whose learning rate is taken, without a grid)
                steps, batch_size, sequence_length, learning_rates, public_share, seed
                                                            -> ffn.safetensors, record.json

    expert      anchor, public, domain, specialist (whose learning rate is taken)
                kind, rows, stay and temperature (filter), steps, batch_size, sequence_length, public_share, seed
                rank, learning_rates (low-rank: a grid of its own, without the input specialist)
                                                            -> expert.safetensors, record.json
    squeeze     anchor, expert; rank                        -> expert.safetensors (low-rank), record.json
    joint       anchor, public, domain:NAME and expert:NAME of every owner
                budget, learning_rate, routing, stay and temperature (filter), steps, ... as expert
                                                            -> model.safetensors, config.json, record.json
    fedavg      anchor, public, domain:NAME of every owner
                rounds, learning_rate, steps, ... as expert -> ffn.safetensors, record.json
    phatgoose   anchor, domain; specialist (the anchor's own gate without one)
                steps, batch_size, sequence_length, seed    -> gate.safetensors; `phatgoose_model`

`motet.bench.quality.pretraining` has the stage `anchor` (public; the [anchor] table and seed). Networks are kept under
the anchor's tensor names in its dtype, rounded once, after training; every figure is of the rounded ones.
"""
