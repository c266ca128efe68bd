"""What a Python program does, followed on abstract values along every path; what libraries do, it asks."""
