"""What every script needs: arguments, signals, devices, processes, files, the terminal."""
