"""What Serf adds to SWIM: members with a status, events, queries. It waits for nothing."""
