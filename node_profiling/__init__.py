"""What profile_nodes.py is made of: measuring one node, and showing what came out."""
