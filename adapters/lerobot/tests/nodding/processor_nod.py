from lerobot.policies.act.processor_act import make_act_pre_post_processors as make_nod_pre_post_processors

__all__ = ["make_nod_pre_post_processors"]
