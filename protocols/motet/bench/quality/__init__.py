"""`motet bench quality`: is the composite worth having? Trains, merges and scores everything on the machine at hand.

Rooms: `config` is what people write, `plan` which stage needs which, `stages` what a stage is, `engine` does them with
`worker` processes (`crew`) and keeps them in a `cache`, `results` is what they say together, `commands` the command.
The stages themselves lie with the side whose work they do: training with the client, merging with the coordinator.
"""
