"""What several rooms compute alike. It needs torch alone, knows no room, and is no technique."""
