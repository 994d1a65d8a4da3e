"""What joins the cores to an asyncio program: its clock, sockets and files."""
