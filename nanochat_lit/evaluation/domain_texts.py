"""Short texts of several domains, written for this project, to compare tokenizers without other data."""

DOMAINS: dict[str, str] = {
    "news": """The city council voted on Tuesday to close the old harbour bridge to lorries from the first of March, after
engineers found cracks in two of its eleven piers. "We would rather be blamed for a detour than for an accident," said
Margaret Oyelaran, who heads the transport committee. Hauliers expect the longer way round the bay to cost them about 14
million a year; the port authority, which handled 3.2 million tonnes in 2023, called the decision regrettable but right.
Repairs are to begin in autumn. Until then buses and cars may still cross, at no more than 30 kilometres an hour. A new
bridge, planned since 2011, has been put off four times, most recently because a bidder withdrew.""",
    "code": '''def merge_sorted(left: list[int], right: list[int]) -> list[int]:
    """Merge two sorted lists into one."""
    result: list[int] = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            result.append(left[i])
            i += 1
        else:
            result.append(right[j])
            j += 1
    return result + left[i:] + right[j:]


class Counter:
    def __init__(self, start=0):
        self._value = start

    def increment(self, by=1):
        if by <= 0:
            raise ValueError(f"by must be positive, got {by!r}")
        self._value += by
        return self._value


for (const item of document.querySelectorAll("ul > li.active")) {
  item.addEventListener("click", (event) => { console.log(event.target.id); });
}
SELECT name, COUNT(*) AS total FROM orders WHERE year >= 2020 GROUP BY name ORDER BY total DESC LIMIT 10;
''',
    "math": r"""Let $f(x) = x^3 - 3x + 1$. Then $f'(x) = 3x^2 - 3 = 3(x-1)(x+1)$, so that $f$ rises on $(-\infty, -1)$, falls on
$(-1, 1)$ and rises again. Since $f(-1) = 3 > 0$ and $f(1) = -1 < 0$, there are three real roots. Put $x = 2\cos\theta$:
\[ 8\cos^3\theta - 6\cos\theta + 1 = 2\cos 3\theta + 1 = 0, \] hence $\theta = \frac{2\pi}{9} + \frac{2k\pi}{3}$.
12 + 30 = 42; 7 * 8 = 56; 144 / 12 = 12; 3.14159 * 2.5^2 = 19.63; 1000 - 387 = 613; (15 + 9) * 4 - 6 = 90.
If a train covers 240 km in 2.5 hours, its mean speed is 240 / 2.5 = 96 km/h. The sum of the first n odd numbers is n^2:
1 + 3 + 5 + ... + (2n - 1) = n^2. For n = 10 that is 100.""",
    "German": """Am frühen Morgen lag der Nebel noch über den Feldern, als der Müller seine Säcke auf den Wagen lud. Er hatte
schlecht geschlafen, denn die Rechnung des Zimmermanns war höher ausgefallen, als er befürchtet hatte. Trotzdem pfiff er
vor sich hin. Auf dem Markt würde er den Weizen verkaufen, danach ließe sich über alles Weitere nachdenken. Die
Straßenverkehrsbehörde hatte die Brücke gesperrt, also nahm er den Umweg durch das Tal, vorbei an den Obstgärten.""",
    "Russian": """Рано утром туман ещё лежал над полями, когда мельник грузил мешки на телегу. Он плохо спал, потому что счёт
плотника оказался больше, чем он опасался. И всё же он насвистывал. На рынке он продаст пшеницу, а потом можно будет
подумать обо всём остальном. Мост был закрыт, поэтому он поехал в объезд через долину, мимо фруктовых садов.""",  # noqa: RUF001
    "Chinese": """清晨,田野上还笼罩着薄雾,磨坊主已经把一袋袋面粉装上了车。他昨夜没有睡好,因为木匠的账单比他担心的还要高。
尽管如此,他还是吹着口哨。到了集市上,他要把小麦卖掉,然后再考虑其他的事情。桥已经封闭了,所以他绕道山谷,经过果园。
孩子们在路边向他挥手,老人坐在门前晒太阳。中午之前他就到了城里,那里的街道挤满了人,到处都能听到讨价还价的声音。""",
    "Japanese": """朝早く、畑にはまだ霧がかかっていたが、粉屋はもう荷車に袋を積んでいた。大工の請求書が心配していたよりも高かったので、
昨夜はよく眠れなかった。それでも彼は口笛を吹いていた。市場で小麦を売り、それからほかのことを考えればよい。橋は通行止めになって
いたので、果樹園のそばを通って谷を回る道を選んだ。子どもたちが道ばたで手を振り、お年寄りは戸口で日なたぼっこをしていた。""",
    "Korean": """이른 아침, 들판에는 아직 안개가 끼어 있었지만 방앗간 주인은 벌써 수레에 자루를 싣고 있었다. 목수의 계산서가 걱정했던
것보다 비싸서 그는 잠을 잘 자지 못했다. 그래도 그는 휘파람을 불었다. 시장에서 밀을 팔고 나면 나머지 일을 생각할 수 있을
것이다. 다리가 막혀 있어서 그는 과수원을 지나 골짜기를 돌아가는 길을 택했다.""",
    "Arabic": """في الصباح الباكر كان الضباب لا يزال يغطي الحقول عندما كان الطحان يحمل الأكياس على العربة. لم ينم جيدا لأن فاتورة
النجار كانت أعلى مما كان يخشى. ومع ذلك كان يصفر لحنا قديما. في السوق سيبيع القمح، وبعد ذلك يمكنه أن يفكر في كل شيء آخر. كان
الجسر مغلقا، فسلك الطريق الطويل عبر الوادي، مرورا ببساتين الفاكهة. وكان الأطفال يلوحون له من جانب الطريق.""",
    "Hindi": """सुबह-सुबह खेतों पर अभी भी कोहरा छाया हुआ था, जब चक्की वाला अपनी गाड़ी पर बोरियाँ लाद रहा था। वह ठीक से सो नहीं पाया था,
क्योंकि बढ़ई का बिल उसकी आशंका से भी ज़्यादा निकला। फिर भी वह सीटी बजा रहा था। बाज़ार में वह गेहूँ बेचेगा, उसके बाद बाकी बातों
के बारे में सोचा जा सकता है। पुल बंद था, इसलिए वह घाटी से होकर लंबे रास्ते से गया।""",
}  # fmt: skip
"""Texts by domain: English news, code, formulas, and a similar story in several languages."""
