"""The client: one interface to a log, in this process or over the network.

`client` is what users hold. It talks to a `backend`, of which there are two: `network` here, and
the one of `proglog.agent`, for a log in this process. `producer` gathers records into batches, and
`sender` sends them until they are answered; `consumer` reads on where it was interrupted.
"""
