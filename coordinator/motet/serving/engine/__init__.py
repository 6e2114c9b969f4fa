"""The engine: prompts in, tokens out, many sequences with different expert sets in every pass of the model.

    composite = load_composite(Path("composite"))
    with Engine(composite, max_batch=16, queue=64) as engine:
        ticket = engine.submit(Job(prompt=ids, experts=composite.roster.every(), sampling=Sampling()), deliver)

`deliver` is called with a `Step` for every token, from the engine's thread. `job` has the values, `loading` the
composite, `state` and `attention` what a sequence remembers, `network` one pass, `batch` who is in it, `prefixes` what
is used again, `engine` the thread, `threads` how many more compute.
"""
