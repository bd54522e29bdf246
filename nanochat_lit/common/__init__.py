"""What every layer needs: errors for users, files, the hardware, the process group."""
