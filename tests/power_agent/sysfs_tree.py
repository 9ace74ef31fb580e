"""INA3221 chips as directory trees, in the layouts of L4T r32 (IIO) and of newer kernels (hwmon)."""

import os


class Chip:
    """One chip with up to three rails.

    Args:
        sysfs: root of the tree.
        layout: "iio" or "hwmon".
        rails: (volts, amperes) by name, in the order of the channels.
        address: bus and address on it.
        number: of the IIO or hwmon device.
    """

    def __init__(self, sysfs, layout, rails, address="6-0040", number=0):
        real = sysfs / "devices" / "platform" / "i2c" / address
        inner = real / (f"iio:device{number}" if layout == "iio" else f"hwmon/hwmon{number}")
        inner.mkdir(parents=True)
        (real / "name").write_text("ina3221x\n" if layout == "iio" else "ina3221\n")
        link = sysfs / "bus" / "i2c" / "devices" / address
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(real)
        first = 0 if layout == "iio" else 1
        self._files = {}
        self._labels = {}
        for channel, (name, (volts, amperes)) in enumerate(rails.items(), start=first):
            labels = {"iio": f"rail_name_{channel}", "hwmon": f"in{channel}_label"}
            inputs = {
                "iio": (f"in_voltage{channel}_input", f"in_current{channel}_input"),
                "hwmon": (f"in{channel}_input", f"curr{channel}_input"),
            }
            self._labels[name] = inner / labels[layout]
            self._labels[name].write_text(f"{name}\n")
            self._files[name] = [inner / each for each in inputs[layout]]
            self.show(name, volts, amperes)

    def show(self, name, volts, amperes):
        for file, value in zip(self._files[name], (volts, amperes), strict=True):
            new = file.with_name(f".{file.name}.new")
            new.write_text(f"{round(value * 1000)}\n")
            new.replace(file)  # sysfs never shows half a value

    def hide_label(self, name):
        """Put in its place what also root cannot read."""
        self._labels[name].unlink()
        self._labels[name].mkdir()

    def hang(self, name):
        """Make reading its current last until somebody writes; the file to write to."""
        file = self._files[name][1]
        file.unlink()
        os.mkfifo(file)
        return file

    def unplug(self, name):
        for file in self._files[name]:
            file.unlink()
