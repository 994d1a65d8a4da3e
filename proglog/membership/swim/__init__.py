"""Who is there: SWIM as memberlist speaks it, with Lifeguard. It waits for nothing."""
