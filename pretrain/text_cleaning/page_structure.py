"""Recognise navigation bars and keyword lists, which have menu items or repeated words instead of sentences."""

import re
from collections import Counter
from itertools import pairwise

from text_cleaning.phrase_finder import PhraseFinder

MENU_ITEMS = {  # by language, separated by commas
    "zh": """
        首页, 主页, 关于我们, 关于本站, 公司简介, 企业文化, 产品中心, 产品介绍, 产品展示, 新闻, 新闻中心, 新闻动态,
        最新消息, 最新动态, 公司动态, 行业新闻, 资讯, 公告, 成功案例, 案例, 解决方案, 招聘信息, 人才招聘, 加入我们,
        诚聘英才, 联系我们, 联络我们, 联系方式, 在线留言, 留言板, 在线客服, 客户服务, 服务中心, 售后服务, 网站地图,
        网站导航, 站点地图, 导航, 登录, 登入, 注册, 会员, 会员登录, 会员登入, 会员专区, 会员中心, 个人中心,
        忘记密码, 退出, 购物车, 结算, 我的订单, 订单查询, 收藏夹, 我的收藏, 线上购物, 在线购物, 优惠券, 帮助,
        帮助中心, 常见问题, 使用条款, 服务条款, 隐私, 隐私政策, 隐私权政策, 免责声明, 法律声明, 版权所有, 版权声明,
        保留所有权利, icp备, 技术支持, 友情链接, 合作伙伴, 广告服务, 投稿, 设为首页, 加入收藏, 手机版, 电脑版,
        客户端, 返回顶部, 返回首页, 返回列表, 您的位置, 当前位置, 正文, 上一篇, 下一篇, 上一页, 下一页, 尾页, 末页,
        共, 页, 跳转, 跳转到, 确定, 没有了, 打印, 关闭, 收藏, 分享, 分享到, 微博, 微信, qq空间, 朋友圈, 回复, 举报,
        点赞, 转发, 评论, 发表评论, 发表于, 只看楼主, 倒序浏览, 阅读模式, 显示全部楼层, 楼主, 沙发, 板凳, 地板,
        标签, 分类, 归档, 热门文章, 最新文章, 相关文章, 相关阅读, 推荐阅读, 点击排行, 阅读排行, 更多, 查看更多,
        订阅, 订阅电子报, 电子报, 搜索, 高级搜索, 排序, 筛选, 价格, 销量, 国内, 国际, 财经, 娱乐, 体育, 科技, 汽车,
        房产, 健康, 旅游, 教育, 军事, 文化, 论坛, 博客, 部落格, 社区, 视频, 图片, 地图, 下载, 软件, 游戏, 专题,
        直播, 语言, 简体, 繁体, 百度, 新浪, 搜狐, 网易, 腾讯, 上页, 下页""",
    "en": """
        home, about, about us, our team, company, products, services, solutions, news, blog, press, media, gallery,
        portfolio, careers, jobs, contact, contact us, sitemap, site map, privacy, privacy policy, cookie,
        cookie policy, terms, terms of use, terms of service, terms and conditions, legal, imprint, disclaimer,
        accessibility, advertise, all rights reserved, copyright, powered by wordpress, powered by, wordpress.org,
        skip to content, skip to main content, menu, search, log in, login, sign in, sign up, log out, sign out,
        register, my account, account, my profile, profile, settings, forgot password, forgot your password,
        remember me, cart, shopping cart, checkout, basket, wishlist, orders, my orders, track order, addresses,
        returns, shipping, delivery, help, faq, support, customer service, store locator, stores, gift card,
        newsletter, subscribe, follow us, follow, share, share on facebook, share on twitter, facebook, twitter,
        instagram, youtube, linkedin, pinterest, whatsapp, tweet, pin it, email, print, save, reply, report, like,
        comment, leave a comment, post comment, previous, previous post, next, next post, last, first, older posts,
        newer posts, back to top, top, read more, more, view all, see all, show more, load more, sort by, filter,
        price, rating, newest, popular, relevance, per page, show, results, categories, category, archives,
        recent posts, recent comments, tags, related posts, related articles, rss, rss feed, feed, entries feed,
        comments feed, meta, language, english, download, downloads, business, world, politics, sport, sports,
        opinion, culture, weather, entertainment, technology, tech, science, health, travel, video, videos, photos,
        podcast, crosswords, electronics, accessories, sale, shop, brands, new in, women, men, kids, forum, forums,
        community, members, events, calendar, documentation, docs, index, table of contents""",
}
# A part of a text (harm_filter.py) is a navigation bar if it has at most `sentences` sentence ends, at most `articles`
# articles (the, 的) and at least `items` different menu items, and its menu items take at least `share` of its letters.
MENU_LIMITS = {"sentences": 2, "articles": 2, "items": 5, "share": 0.5}
# A part of a text is a keyword list if
# - it has no sentence end, and at least `letters` letters (a to z) and Chinese characters,
# - at most the share `function_words` of its words are function words,
# - at most the share `other_signs` of its characters are punctuation or symbols other than separators (commas etc.),
# - of its three most frequent words, those with at least `repeats` occurrences together take at least `share` of its
#   letters.
KEYWORD_LIMITS = {"repeats": 4, "letters": 24, "share": 0.4, "function_words": 0.12, "other_signs": 0.03}
FUNCTION_WORDS = """
    a an and are as at be been but by can could did do does from had has have he her him his i if in is it its may
    me my no not of on or our shall she so than that the their them then these they this those to was we were when
    will with would you your 不 与 为 之 也 了 于 人 他 以 们 你 其 和 在 她 就 很 我 把 是 有 的 着 者 而 被 过 这
    都"""

_FUNCTION_WORDS = frozenset(FUNCTION_WORDS.split())
_MENU = {
    name: PhraseFinder(re.split(r",\s+", items.strip()), whole_words=name == "en") for name, items in MENU_ITEMS.items()
}
_WORD = re.compile(r"[a-z]+|[一-鿿]")
_SENTENCE_ENDS = ("。", ". ", ".\n", "！", "？", "!", "?", "；")
_OTHER_SIGNS = re.compile(r"[^\w\s,，、;；|·.]")


def page_kind(text: str, language: str) -> str:
    """Return "navigation" if a folded text is a navigation bar, "keyword_list" if it is a keyword list, else ""."""
    ends = 0
    for mark in _SENTENCE_ENDS:
        ends += text.count(mark)
        if ends > MENU_LIMITS["sentences"]:
            return ""
    if is_navigation(text, language):
        return "navigation"
    return "keyword_list" if not ends and is_keyword_list(text) else ""


def is_navigation(text: str, language: str) -> bool:
    """Return whether a folded text of at most MENU_LIMITS["sentences"] sentence ends consists mostly of menu items."""
    if text.count(" the ") + text.count("的") > MENU_LIMITS["articles"]:
        return False
    items = _MENU[language].find(text)
    if len(set(items)) < MENU_LIMITS["items"]:
        return False
    return sum(map(len, items)) >= MENU_LIMITS["share"] * sum(map(str.isalpha, text))


def is_keyword_list(text: str) -> bool:
    """Return whether a folded text without sentence ends is a keyword list by KEYWORD_LIMITS."""
    words = _WORD.findall(text)
    letters = sum(map(len, words))
    if letters < KEYWORD_LIMITS["letters"] or len(_OTHER_SIGNS.findall(text)) > KEYWORD_LIMITS["other_signs"] * len(
        text
    ):
        return False
    if sum(word in _FUNCTION_WORDS for word in words) > KEYWORD_LIMITS["function_words"] * len(words):
        return False
    counts = Counter(word for word in words if len(word) > 2)
    counts.update(a + b for a, b in pairwise(words) if a >= "一" <= b != a)  # a Chinese word is two characters
    frequent = [(word, count) for word, count in counts.most_common(3) if count >= KEYWORD_LIMITS["repeats"]]
    return sum(len(word) * count for word, count in frequent) >= KEYWORD_LIMITS["share"] * letters
