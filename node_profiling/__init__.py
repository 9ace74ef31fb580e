"""What profile_nodes.py is made of: choosing what is measured, measuring one node, and showing what came out."""
