"""Does a streaming model keep a device's budget of flash, RAM, time and heat? What breaks first, and how sure is that?

model, device = load_model("tcn-small"), load_device("echo-dot-3")
assessment = assess(model, device)
print(assessment.verdict, assessment.basis())
"""

from firmware_sim.device import device_names, load_device
from firmware_sim.model import load_model
from firmware_sim.verdict import Assessment, Setup, assess

__all__ = ["Assessment", "Setup", "assess", "device_names", "load_device", "load_model"]
