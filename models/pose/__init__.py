"""Networks that find joints: heat maps of each."""

from models.pose.adpc_pose import ADPCPose
from models.pose.hrnet_pose import HRNetPose
from models.pose.simple_baseline import SimpleBaseline

__all__ = ["ADPCPose", "HRNetPose", "SimpleBaseline"]
