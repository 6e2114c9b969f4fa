"""Who may use which experts: keys, tenants, the experts' own terms, and what has been withdrawn.

    members = members_of(roster, known)                   # what owners signed of their experts, by name
    Doorkeeper(policy, Keyring(keys), members, roster)    # `Hooks.authorise`
    Withdrawals(names, sources=[ledger, deny_list])       # `Hooks.withdrawn`, while it is entered

`rules` are the pure decisions, `members` the owners' terms, `keys` the API keys, `sources` who tells of withdrawals,
`withdrawals` what stops while a server runs, `door` asks all of them for every request.
"""
