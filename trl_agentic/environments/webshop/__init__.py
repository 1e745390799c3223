"""WebShop: shopping for a described product as a text game."""

from .catalogue import COLOR_NAMES, Product, WebShopCatalogue
from .engine import WebShopEngine, WebShopState
from .env import Ceiling, WebShopEnv
from .generator import generate_products
from .goals import SPLITS, split_numbers
from .oracle import RandomShopper, Shopper, Step, demonstration
from .policy import small_policy
from .prompts import WebShopPrompt
from .quick import QuickShopper, quick_demonstration
from .reward import Goal, Reward
from .site import UpstreamSiteEngine
from .upstream import UpstreamWebShopEngine


__all__ = [
    "COLOR_NAMES",
    "SPLITS",
    "Ceiling",
    "Goal",
    "Product",
    "QuickShopper",
    "RandomShopper",
    "Reward",
    "Shopper",
    "Step",
    "UpstreamSiteEngine",
    "UpstreamWebShopEngine",
    "WebShopCatalogue",
    "WebShopEngine",
    "WebShopEnv",
    "WebShopPrompt",
    "WebShopState",
    "demonstration",
    "generate_products",
    "quick_demonstration",
    "small_policy",
    "split_numbers",
]
