"""`motet chat`: a conversation in the terminal, with experts that are muted and called in between.

    with local_server(Path("composite")) as url:                 # or the address of a server
        converse(Voice(url, key=None), lines=sys.stdin, write=sys.stdout.write)

`conversation` is what was said and who is muted, without a socket; `voice` asks a server through OpenAI's client;
`terminal` reads lines and writes answers; `local` serves a composite on this machine for the while.
"""
