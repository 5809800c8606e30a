"""Compose the names of the quick start's made-up world, and choose the names to hold out."""

import random
from itertools import product

HELD_OUT_SHARE = 0.1  # share of all possible names

# (language, kind) -> format of a name, and the choices of each part. The lists are short, so that a small model sees
# each part often. Three parts give many more names than the world uses, so that names cannot be memorised: held-out
# names are new, while pairs of parts in them also occur in training.
NAMES = {
    ("en", "person"): (
        "{} {}{}",
        "Ada Ben Carl Dora Emil Flora Gina Hugo Ida Jack Karl Lena Max Nora Olga Paul Rosa Sam Tina Vera",
        "Bran Cal Dar Bel Ful Gar Har Hol Kel Lang Mar Nor Pal Stan",
        "son man ley den low more ner sey ris ster",
    ),
    ("en", "place"): (
        "{} {}{}",
        "Upper Lower New Old Great Little East West",
        "Ash Birch Cedar Crow Deer Elm Fern Fox Gold Hawk King Oak",
        "bridge bury cliff dale field ford gate haven land port stead wick",
    ),
    ("en", "organisation"): (
        "{} {} {}",
        "Acme Apex Atlas Comet Delta Echo Galaxy Iris Jade Lotus Orion Titan",
        "Steel Paper Glass Salt Grain Cotton Coal Sugar",
        "Bank Press Institute Company Museum College Radio Railway",
    ),
    ("en", "work"): (
        "The {} {} of {}",
        "Blue Dark Empty First Frozen Hidden Iron Lost Red Silent",
        "Bell Boat Castle Crown Dream Garden Island Letter Map River",
        "January March April May June July August October November December",
    ),
    ("zh", "person"): (
        "{}{}{}",
        "王 李 张 刘 陈 杨 黄 赵 周 吴 徐 孙 马 胡",
        "明 建 志 国 晓 文 子 思 天 佳 美 俊 永 海",
        "勇 平 英 伟 强 军 杰 涛 辉 鹏 丽 婷 敏 静 娜 芳",
    ),
    ("zh", "place"): (
        "{}{}{}",
        "东 西 南 北 上 新 长 大",
        "安 宁 清 青 广 太 临 石 金 松 柳 桐",
        "阳市 州市 昌市 泉市 山市 港市 溪县 川县 江县 河县 桥镇 湾镇",
    ),
    ("zh", "organisation"): (
        "{}{}{}",
        "华 信 恒 鼎 瑞 宏 盛 荣 富 利 同 和",
        "达 飞 创 基 域 诚 丰 通 源 康 健 德",
        "公司 银行 医院 大学",
    ),
    ("zh", "work"): (
        "《{}{}{}》",
        "秋 夜 月 风 雨 花 雪 云 星 梦",
        "归 落 听 寻 望 问 忆 别 逢 照",
        "人 客 心 门 窗 路 船 歌 楼 城",
    ),
}


class NamePool:
    """Names by language and kind; each is returned once."""

    def __init__(self, names: dict[tuple[str, str], list[str]]) -> None:
        self.names = names

    def new(self, kind: str, language: str) -> str:
        """Return a name that was not returned before; raises ValueError if there are no more names."""
        if not self.names[language, kind]:
            raise ValueError(f"the world has no more names for a {kind} ({language}); ask for fewer --people")
        return self.names[language, kind].pop()


def split_names(draw: random.Random) -> tuple[NamePool, NamePool]:
    """Return (training names, held-out names), a random partition of all possible names."""
    seen, held_out = {}, {}
    for which, (form, *parts) in NAMES.items():
        names = [form.format(*chosen) for chosen in product(*(part.split() for part in parts))]
        draw.shuffle(names)
        cut = int(len(names) * HELD_OUT_SHARE)
        held_out[which], seen[which] = names[:cut], names[cut:]
    return NamePool(seen), NamePool(held_out)
