"""The evidence that a text offers something, or that it reports on offers: a table of patterns with points.

The points were set on the tuning half of tests/pretrain/harm_texts.jsonl and on real documents. Patterns match folded
text (text_folding.py).
"""

import re
from dataclasses import dataclass

_ID = r"[a-z0-9_+@][a-z0-9_.-]{3,}"  # stands for ID in the patterns


@dataclass(frozen=True)
class Evidence:
    """A kind of evidence: `points` for each different match, and at most `most` matches count.

    The alternatives of a pattern are separated by " | "; line breaks within an alternative are removed. english:
    matches whole words. chinese: matches anywhere.
    """

    points: int
    most: int
    chinese: str
    english: str


# At each place, at most one pattern counts. Patterns that do not begin with a fixed character (`_pattern`) are tried
# first; among these, and among the others, the first kind counts.
EVIDENCE = {
    "quotation": Evidence(  # a text does not offer what it quotes; the kinds below do not match within a quotation
        points=-2, most=2,
        chinese=r"""
            [“「『][^”」』\n]{6,120}[”」』]""",
        english=r"""
            "[^"\n]{16,200}" | “[^”\n]{16,200}”""",
    ),
    "contact": Evidence(
        points=3, most=1,
        chinese=r"""
            微(?:信|电|\w?同号)\W{0,3}(?:号|id)?\W{0,3}ID | [薇威]信\W{0,3}ID | 加[微薇威v]信?\W{0,4}ID |
            [裙群]号?\W{0,3}\d{5,} | v信\W{0,3}ID | 加赖\W{0,3}ID | 扣扣\w{0,2}\W{0,3}\d{5,} |
            企鹅\w?\W{0,3}\d{5,} | 飞机\w{0,2}\W{0,3}ID | 电报\w{0,2}\W{0,3}ID | 联系\W{0,3}@\w+ |
            q{1,2}群?\W{0,3}\d{5,} | (?<!\d)1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d) | (?<!\d)[48]00-\d{3}-?\d{4}(?!\d)""",
        english=r"""
            line(?: id)? ?[:：] ?ID |
            (?:tg|telegram|whatsapp|wechat|skype|kik|wickr|signal|snapchat|qq|vx|wx)(?: id)?(?:群| ?[:：] ?|
            (?= [@+\d])) ?ID | (?:our|add) (?:whatsapp|telegram|wickr|kik|skype|signal|line|snapchat) | whatsapp |
            (?:contact|message|add|at|us) @\w+ |
            (?:call|phone|text|tel|contact|at|on|by)\W{1,3}(?:phone )?\+?\d[\d -]{6,} |
            (?:call|text|message|email|contact|dm) (?:us|me|our|any ?time) | [\w.]+@[\w-]+\.[a-z]+ |
            \d{3}[ -]\d{4}(?![\d-]) | \+?\d{3}[ -]\d{3}[ -]\d{4} | (?:reply|write|send)(?: us| me)? (?:with|to|your)""",
    ),
    "link": Evidence(
        points=2, most=1,
        chinese=r"""
            网址 | 链接 | 下载地址 | 永久地址 | 商城""",
        english=r"""
            www\.\w+ | https?:/+\w+ | t\.me/\w+ |
            [a-z0-9][a-z0-9-]+\.(?:com|net|org|cn|cc|vip|top|xyz|info|io|co|app|shop|site|club|bet|win|tv|ru|biz|me|
            example) | links? (?:in|below) | (?:the|this) link |
            our (?:site|website|shop|channel|page|app|gallery) | my (?:site|page|profile|bio|channel)""",
    ),
    "call": Evidence(
        points=1, most=4,
        chinese=r"""
            加(?:我|微|薇|威|v|q|群|赖|扣|企鹅|飞机|line|tele) | 微信 | 电话 | 热线 | 来电 | 致电 | 联系 | 联络 |
            咨询 | 客服 | 私聊 | 私信 | 扫码 | 点击 | 点我 | 头像 | 下载 | 注册 | 登录 | 马上 | 立即 | 赶紧 | 速来 |
            抓紧 | 先到先得 | 名额 | 预约 | 预订 | 订购 | 下单 | 需要的 | 有需要 | 有意 | 诚心要 |
            想(?:做|要|赚|赢|发财) | 进群 | 入群 | 拉群 | 领取 | 上车 | 诚招 | 诚聘 | 招募 | 招人 | 招代理 | 招商 |
            找我 | 找我们 | 收藏 | 签到 | 试玩 | 充值 | 入金 | 抢(?:购|红包|注)? | 出售 | 定制 | 承接 | 欢迎 |
            看过来 | 报暗号 | 暗号 | 扣1 | 备注""",
        english=r"""
            click(?:ing)? | sign up | signup | register | join | order (?:now|today|on|by|yours) |
            call (?:now|or|for) | apply (?:now|today|in|with) | buy (?:now|today|real|\d|your) | shop now |
            book (?:now|your) | subscribe | download | claim | hurry | act (?:now|fast) |
            start (?:now|today|winning|earning|chatting) | try (?:it|your luck) | contact | chat (?:with|to|now) |
            visit | check out | get (?:your|my|it|started|paid|verified) | hit me up | enter (?:here|your|now) |
            log in | withdraw | invest | hire | deposit | play (?:now|slots|online|live|for|dice) | bet (?:now|on) |
            place your | tell us | just (?:pay|enter|message|dm|send|text) | use (?:my |our )?code |
            follow(?:ing)? (?:this|the) link | watch (?:her|free|now|live) | kindly | (?:don't|do not) miss |
            text (?:me|us|our|to|now) | choose your | meet (?:local|hot|single|generous|sexy|girls) |
            (?:wanted|needed)[:?!] | verify | confirm(?:ing)? your | proceed | send (?:us|me|your|\d) |
            add (?:me|us) | look(?:ing)? for fun | i am online |
            (?:on|via|by|through) (?:telegram|wickr|kik|skype|signal|line|snapchat)""",
    ),
    "promise": Evidence(
        points=1, most=4,
        chinese=r"""
            免费 | 无需 | 不用 | 不需 | 不打 | 不看 | 不查 | 不问 | 不上门 | 不成功 | 不收 | 不限 | 不卡单 |
            不满意 | 不过(?:退|不) | 不退 | 包邮 | 包吃 | 保密 | 隐私 | 安全可靠 | 诚信 | 信誉 | 百分百 | 百分之百 |
            第一 | 最高 | 最低 | 最大 | 最新优惠 | 最快 | 优惠 | 秒(?:到|回|下|提|杀) | 到账 | 当天 | 当场 | 现结 |
            结算 | 随时 | 二十四小时 | 24 ?小时 | 全国 | 同城 | 上不封顶 | 稳定 | 轻松 | 专业 | 正品 | 货到付款 |
            后付款 | 再付款 | 验货 | 验证 | 满意 | 实力 | 担保 | 首选 | 火爆 | 赠送 | 即送 | 马上送 | 再送 |
            [买充]\w送\w | 送\d+ | 厂家 | 工厂 | 直销 | 直供 | 直营 | 批发 | 量大 | 面议 | 代理 | 长期 | 真实 |
            逼真 | 手感 | 高端 | 任(?:你|您|君)?[选挑看] | 随便 | 可查 | 可飞 | 可做 | 永久 | 返点 | 返水 | 不是梦 |
            导师 | 老师带 | 资深 | 通过 | 见效 | 有效 | 退款 | 发货 | 快递 | 闪送 | 每日更新 | 每天更新 | 会员 |
            新用户 | 老客户 | 朋友圈 | 点数低 | 点位低 | 只要 | 就能 | 就可以 | 团队 | 多劳多得 | 高薪 | 高价 |
            低价 | 低至 | 成功率 | 无效 | 现货 | 一手 | 靠谱 | 正规 | 秘密 | 绝对 | 前\w+名 | 加急 | 急用 |
            一张身份证 | 凭身份证 | 身份证就 | 男女 | 十[中拿] | 稳赚 | 翻倍""",
        english=r"""
            guaranteed? | free | no (?:\w+ ){1,2}(?:needed|required|check|fee|fees) |
            no (?:credit|experience|exams?|study|kyc|registration|drop|upfront|sign-?up|wagering|age|job|id|
            collateral|paperwork|password|strings|questions|problem|doctor|side effects|prescription|risk|limits?) |
            without (?:exam|exams|license|licence|prescription|collateral|diet|study|id) | instant(?:ly)? |
            immediately | best | lowest | cheap(?:est)? | affordable | low (?:fee|price|rate|interest) |
            discreet(?:ly)? | discounts? | trusted | legit | genuine | verified | verifiable | undetectable |
            money ?back | refund(?:ed)? | 24/7 | 24 hours? |
            (?:within|in) (?:the )?(?:\w+ )?(?:seconds|minutes|hours?|days?|weeks) | today | tonight | right now |
            same day | overnight | worldwide | shipping | shipped | delivery | delivered | limited | only \d+ |
            offer(?:s|ing|ed)? | for sale | special | vip | real | (?:high|top|best) quality | premium |
            lab tested | stealth | escrow | accepted | accuracy | (?:win|success) rate | easy | easily | fast |
            quick | secret | everyone | all (?:states|banks|niches|sizes) | price list | bulk |
            we (?:sell|offer|can|buy|issue|provide|deliver|make|ship|have) | waiting for you | near you |
            in your (?:city|area|account) | serious (?:buyers?|clients|inquiries) | congratulations | unlimited |
            lifetime | new (?:players?|members?|customers) | bonus | doubled | off |
            ends? (?:tonight|at|soon|before) | last chance | money in | happy (?:clients|customers|punters) |
            confidential | independent | gallery | appointment | real photos | bitcoin | crypto | cashapp |
            satisfaction | first \w+ doubled | 100% | refused you | plagiarism-free | natural | results |
            while (?:stocks|supplies|you sleep)""",
    ),
    "price": Evidence(
        points=1, most=2,
        chinese=r"""
            [\d一二三四五六七八九十两百千]+(?:万|元|块|起步?|个点|折|美元|美金|u)(?![年月日人名]) |
            百分之[一二三四五六七八九十]+ | 免息 | 定金 | 价格 | 全套 | (?:八百|一千)一次""",
        english=r"""
            \d[\d,.]* ?(?:usd|dollars?|euros?|pounds|bucks|btc) | \d[\d.]*k | [$€£¥] ?\d[\d,.]*k? | \d+(?:\.\d+)?% |
            (?:lowest )?prices? (?:from|list) | fee""",
    ),
    "addressed": Evidence(
        points=1, most=1,
        chinese=r"""
            您 | 老板 | 老铁 | 朋友们 | 兄弟们 | 亲们 | 你""",
        english=r"""
            your? | my | us""",
    ),
    "report": Evidence(
        points=-2, most=4,
        chinese=r"""
            警方 | 警察 | 民警 | 公安 | 派出所 | 刑侦 | 刑警 | 法院 | 检察 | 地检署 | 公诉 | 检方 | 被告 | 嫌疑 |
            嫌犯 | 主嫌 | 判处 | 判决 | 徒刑 | 刑事 | 逮捕 | 拘捕 | 拘留 | 抓获 | 落网 | 查获 | 查处 | 查出 | 捣毁 |
            破获 | 打掉 | 检获 | 缴获 | 涉案 | 涉嫌 | 审理 | 庭审 | 开庭 | 合议庭 | 法庭 | 原告 | 上诉 | 裁定 |
            裁决 | 辩护 | 犯罪 | 罪犯 | 罪名 | 罪[，。] | 违法 | 非法 | 诈骗 | 欺诈 | 骗局 | 骗子 | 骗取 | 受骗 |
            被骗 | 上当 | 报案 | 报警 | 警惕 | 谨防 | 提防 | 防范 | 防诈 | 反诈 | 提醒 | 举报 | 曝光 | 暗访 | 记者 |
            报道 | 本报 | 本台 | 新华社 | 通报 | 获悉 | 据悉 | 打击 | 整治 | 行动 | 受害 | 损失 | 索赔 | 起诉 |
            查封 | 没收 | 冻结 | 罚款 | 约谈 | 禁止 | 严禁 | 受到调查 | 消费者 |
            不要(?:出|向|相信|轻信|转账|按|给|点|随意) | 别点 | 切勿 | 陷阱 | 案件 | 案 | 赌资 | 冒充 | 假冒 |
            庄家\w{0,4}个 | 赌客 | 嫖客 | 窝点 | 团伙 | 涉 | 律师 | 赌徒 | 戒赌 | 求助 | 成瘾 | 被抓 | 入狱""",
        english=r"""
            police\w* | officers? | officials? | courts? | judges? | judgment | jury | counsel | prosecut\w+ |
            detectives? | investigat\w+ | arrest\w* | charged | convict\w* | sentenc\w+ | defendants? | plaintiff |
            appellant | respondent | appeals? | indict\w+ | alleg\w+ | guilty | trial | tribunal | lawsuits? |
            sued | regulators? | commission | customs | seized | raid\w* | illegal\w* | unlawful\w* |
            breaking the law | fraud\w* | scam\w* | victims? | warn(?:s|ed|ing|ings)? | beware | according to |
            said | says | told | reported | report (?:them|it|the) | helplines? | addict\w* | crimes? | criminals? |
            gangs? | crackdown | prison | jail\w* | counterfeiters | consumer group | agency | prostitution |
            traffick\w+ | suspects? | smuggl\w+ | authorities | bann?ed | shut (?:\w+ )?down | closed down |
            if you (?:receive|get|see) | delete (?:it|them|the) | ignore (?:it|them) | pleaded | accused |
            phishing | spam\w* | launder\w* | real (?:companies|banks) | never asks? | inquiry | hearing | lawyers?""",
    ),
    "exposition": Evidence(
        points=-1, most=5,
        chinese=r"""
            通常 | 一般 | 往往 | 主要 | 例如 | 因此 | 所以 | 然而 | 之后 | 后来 | 随后 | 当时 | 他们 | 人们 | 找到 |
            申请人 | 审批 | 网点 | 工作日 | 收入证明 | 多半 | 若 | 是指 | 指的是 | 是一种 | 俗称 | 简称 | 又称 |
            统称 | 得名 | 原指 | 起源 | 最早 | 发明 | 合成 | 世纪 | 年代 | 《 | 唐代 | 宋代 | 明代 | 清代 |
            [12]\d\d\d年 | 合法 | 法律 | 法规 | 规定 | 医生 | 医师 | 患者 | 治疗 | 疗法 | 症状 | 处方药 | 专用处方 |
            凭\w{0,4}处方 | 副作用 | 不良反应 | 药物 | 临床 | 疾病 | 研究 | 学校 | 家长 | 孩子 | 同学 | 教育 |
            调查 | 公布 | 显示 | 表示 | 认为 | 因为 | 由于 | 但 | 如果 | 以及 | 其中 | 其 | 该 | 被 | 曾 | 已 | 于 |
            所 | 此 | 这个 | 这是 | 他 | 她 | 应当 | 可能 | 什么是 | 怎么办 | 吗""",
        english=r"""
            paid | received | sold | bought | promised | owed | lost | came | went | took | gave | kept | often |
            mostly | usually | who | whom | while | common | equals | survey | annual | is an? | was | were | had |
            been | has | which | whose | although | however | because | whether | their | they | them | he | she |
            his | him | her | refers? to | known as | named after | century | originally | first | developed |
            invented | 18\d\d | 19\d\d | doctors? | patients? | treat\w* | symptoms? | side effects? | prescribed |
            prescription | clinics? | licen[cs]ed | laws? | act | legal | study | research\w* | experts? | parents |
            teachers? | pupils | children | may | should | could | never | do not | don't | used | such as | term |
            people | would | about""",
    ),
}  # fmt: skip


def _pattern(language: str) -> tuple[str, list[str]]:
    """Return the pattern of a language, and the kind of evidence of each of its groups.

    Alternatives are grouped by their first character, so that few are tried at a place.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for kind, evidence in EVIDENCE.items():
        for part in re.split(r"\s+\|\s+", getattr(evidence, language).strip()):
            alternative = re.sub(r"\n\s*", "", part).replace("ID", _ID)
            alternative += r"(?![a-z])" if language == "english" else ""
            choice = re.match(r"\(\?:([^()?]*)\)(?!\?)", alternative)  # (?:a|b)c is divided into ac and bc
            for option in choice[1].split("|") if choice else [""]:
                spelled = option + alternative[choice.end() if choice else 0 :]
                plain = spelled[0].isalpha() and spelled[1:2] not in {*"?*+{"}
                groups.setdefault(spelled[0] if plain else "", []).append((kind, spelled[plain:]))
    found = [f"{first}(?:{'|'.join(f'{rest}()' for _, rest in parts)})" for first, parts in groups.items()]
    return "|".join(found), [kind for parts in groups.values() for kind, _ in parts]


_CHINESE, _CHINESE_KINDS = _pattern("chinese")
_ENGLISH, _ENGLISH_KINDS = _pattern("english")
_PATTERNS = (
    (re.compile(_CHINESE), _CHINESE_KINDS),
    (re.compile(f"(?<![a-z0-9])(?:{_ENGLISH})"), _ENGLISH_KINDS),
)


def evidence_points(text: str) -> dict[str, int]:
    """Return the points of each kind of evidence in a folded text."""
    found: dict[str, set[str]] = {kind: set() for kind in EVIDENCE}
    for pattern, kinds in _PATTERNS[text.isascii() :]:  # for ASCII text, only the English pattern
        for match in pattern.finditer(text):
            assert match.lastindex, match
            found[kinds[match.lastindex - 1]].add(match.group())
    return {kind: evidence.points * min(evidence.most, len(found[kind])) for kind, evidence in EVIDENCE.items()}
