"""Who is there, and what they may do: certificates, TLS, policies and the audit trail."""
