#include "data/corpus.h"
#include "run/error.h"
#include "run/random.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <sstream>
#include <utility>

static const double SKEW = 4;
static const char* const GRAMMAR = R"(
TALE = ^Ada HOME.Ada.she | ^Amy HOME.Amy.she | ^Eve HOME.Eve.she | ^Ida HOME.Ida.she | ^Ivy HOME.Ivy.she | ^Zoe HOME.Zoe.she
     | ^Abe HOME.Abe.he | ^Ben HOME.Ben.he | ^Gus HOME.Gus.he | ^Leo HOME.Leo.he | ^Ned HOME.Ned.he | ^Tom HOME.Tom.he
NAME.she = Ada | Amy | Eve | Ida | Ivy | Zoe
NAME.he  = Abe | Ben | Gus | Leo | Ned | Tom

HOME.w.k = sails FAR OBJ.place.k.sg.sea and VERB.k.sg.sea ^. STORY.w.k.sea | farms FAR OBJ.place.k.sg.land and VERB.k.sg.land ^. STORY.w.k.land
STORY.w.k.t = LINE.k.t LINE.k.t LINE.k.t MORE.w.k.t
MORE.w.k.t  = 2* LINE.k.t LAST.w.k.t | CLOSE.w.k.t
LAST.w.k.t  = LINE.k.t CLOSE.w.k.t | CLOSE.w.k.t
CLOSE.w.k.t = So FANS.t VLORE.pl OBJ.lore.k.pl.t to $w ^. ^\n

LINE.k.t = 5* The ONE.t | 2* Each SINGLE.t | 2* MANYcap PLURAL.t | 4* HEcap.k VERB.k.sg.t JOIN AFTER.t ^.
           | 3* When HE.k.sg VERB.k.sg.t ^, ANY.t | 2* In SEASON ANY.t | 2* NAME.she REST.she.sg.t | 2* NAME.he REST.he.sg.t

ANY.t = 3* the ONE.t | NAME.she REST.she.sg.t | NAME.he REST.he.sg.t | ONE SINGLE.t | 2* MANY PLURAL.t | 2* PLURAL.t
ONE.t    = 2* ADJ.life ONES.t | 3* ONES.t
ONES.t   = 2* NOUN.she.sg.t REST.she.sg.t | 2* NOUN.he.sg.t REST.he.sg.t | 3* NOUN.it.sg.t REST.it.sg.t | 3* MANYS.t
SINGLE.t = 2* ADJ.life SINGLES.t | 3* SINGLES.t
SINGLES.t = 2* NOUN.she.sg.t REST.she.sg.t | 2* NOUN.he.sg.t REST.he.sg.t | 3* NOUN.it.sg.t REST.it.sg.t
PLURAL.t = 2* ADJ.life MANYS.t | 3* MANYS.t
MANYS.t  = NOUN.she.pl.t REST.she.pl.t | NOUN.he.pl.t REST.he.pl.t | 2* NOUN.it.pl.t REST.it.pl.t
AFTER.t  = 3* the AFTERS.t | NAME.she VERB.she.sg.t | NAME.he VERB.he.sg.t | 2* AFTERM.t | 2* ADJ.life AFTERM.t
AFTERS.t = AFTERM.t | NOUN.she.sg.t VERB.she.sg.t | NOUN.he.sg.t VERB.he.sg.t | NOUN.it.sg.t VERB.it.sg.t 
AFTERM.t = 2* NOUN.it.pl.t VERB.it.pl.t | NOUN.she.pl.t VERB.she.pl.t | NOUN.he.pl.t VERB.he.pl.t
FANS.t   = FANM.t | the FANM.t | MANY FANM.t | ADJ.life FANM.t
FANM.t   = NOUN.she.pl.t | NOUN.he.pl.t

REST.k.n.t = 3* MOD.k.n.t VERB.k.n.t ^. | 2* VERB.k.n.t LINK HE.k.n VERB.k.n.t ^.
MOD.k.n.t  = 2* FAR OBJ.place.k.n.t | REL.k RC.k.n.t
RC.k.n.t   = 3* VERB.k.n.t | 2* SEEN.t
SEEN.t = 2* the SEENS.t | NAME.she VSEE.sg | NAME.he VSEE.sg | SEENM.t
SEENS.t = NOUN.she.sg.t VSEE.sg | NOUN.he.sg.t VSEE.sg | NOUN.it.sg.t VSEE.sg | SEENM.t
SEENM.t = NOUN.it.pl.t VSEE.pl | NOUN.she.pl.t VSEE.pl | NOUN.he.pl.t VSEE.pl
REL.it = that
REL.k  = who

VERB.it.n.t = 2* VEAT.n OBJ.food.it.n.t | 2* VSEE.n OBJ.life.it.n.t | 2* VREST.n FAR OBJ.place.it.n.t
VERB.k.n.t = 3* VMEND.n OBJ.tool.k.n.t | 2* VCOOK.n OBJ.food.k.n.t | 2* VLORE.n OBJ.lore.k.n.t | 2* VMEET.n OBJ.life.k.n.t
VMEND.n ~ mend-s | sell-s | buy-s | lend-s | lose-s | want-s | need-s | hold-s
VCOOK.n ~ cook-s | bake-s | salt-s | cut-s | boil-s
VLORE.n ~ sing-s | tell-s | hum-s | know-s
VMEET.n ~ meet-s | help-s | hug-s | call-s | pet-s | aid-s
VEAT.n  ~ eat-s | like-s | lick-s | smell-s
VSEE.n  ~ fear-s | love-s | see-s | wake-s | hate-s
VREST.n ~ sleep-s | hide-s | wait-s | play-s | rest-s | sit-s

OBJ.life.k.n.t = 3* the OBN.life.t | 2* HIS.k.n OBN.life.t | 2* ONE OBO.life.t | 2* MANY OBM.life.t | 3* OBM.life.t | NAME.she | NAME.he
OBJ.c.k.n.t = 3* the OBN.c.t | 3* HIS.k.n OBN.c.t | 2* ONE OBO.c.t | 2* MANY OBM.c.t | 4* OBM.c.t
OBN.c.t = 1* ADJ.c OBX.c.t | 1* OBX.c.t
OBX.c.t = NOUN.c.sg.t | NOUN.c.pl.t
OBO.c.t = 1* ADJ.c NOUN.c.sg.t | 1* NOUN.c.sg.t
OBM.c.t = 1* ADJ.c NOUN.c.pl.t | 1* NOUN.c.pl.t
ONE  = one | each | this | that
MANY = two | some | ten | six | all | no
MANYcap = Two | Some | Ten | Six
HEcap.she = She
HEcap.he  = He
HE.she.sg = she
HE.he.sg  = he
HE.it.sg  = it
HE.k.pl   = they
HIS.she.sg = her
HIS.he.sg  = his
HIS.it.sg  = its
HIS.k.pl   = their
FAR   = near | by | past | off | under | over | below | on
JOIN  = while | and | but | as
LINK  = as | and | but | if | so | when
SEASON = May | June | July

ADJ.life  ~ old | shy | sad | bold | big | tiny | wise | sly | fat | kind | calm | lazy | mad | odd | red | new
ADJ.tool  ~ old | red | new | big | long | odd | thin | wet | fine | dry | tiny | gold
ADJ.food  ~ hot | raw | ripe | sour | cold | warm | red | big | tiny | dry | fine | odd
ADJ.lore  ~ sad | odd | long | old | true | new | bold | fine
ADJ.place ~ dark | wet | cold | tall | dry | old | calm | wide | big | deep | long | red

NOUN.life.n.t = NOUN.she.n.t | NOUN.he.n.t | 2* NOUN.it.n.t
NOUN.she.n.t  ~ aunt+s | girl+s | nun+s | queen+s | maid+s | wife/wives
NOUN.he.n.t   ~ king+s | boy+s | monk+s | lad+s | duke+s | clown+s
NOUN.it.n.sea  ~ gull+s | crab+s | seal+s | eel+s | cod+s | tern+s | ray+s | newt+s | swan+s | frog+s | bass+es | carp+s
NOUN.it.n.land ~ cow+s | hen+s | pig+s | goat+s | dog+s | cat+s | duck+s | lamb+s | fox+es | owl+s | rat+s | ant+s
NOUN.tool.n.sea  ~ net+s | oar+s | sail+s | rope+s | boat+s | flag+s | hook+s | drum+s | raft+s | mast+s
NOUN.tool.n.land ~ cart+s | plow+s | rake+s | gate+s | bell+s | sack+s | hoe+s | pail+s | axe+s | saw+s
NOUN.food.n.t  ~ fig+s | nut+s | egg+s | pie+s | bun+s | pear+s | plum+s | bean+s | pea+s | oat+s
NOUN.lore.n.t  ~ song+s | tale+s | joke+s | poem+s | lie+s | ode+s
NOUN.place.n.sea  ~ pier+s | dock+s | reef+s | cove+s | dune+s | bay+s | ship+s | rock+s
NOUN.place.n.land ~ barn+s | oak+s | well+s | mill+s | lane+s | pond+s | hill+s | den+s
)";

// --- from text to tables -----------------------------------------------------------------------------------------
typedef std::vector<std::string> Strings;
typedef std::map<std::string, std::string> Values; // of a rule's variables

struct Rule {
    Strings head; // name and parameters; a parameter of one letter is a variable
    bool skewed;
    std::vector<std::pair<double, Strings>> alts; // weight, items
};
static Strings split(const std::string& s, char by) {
    Strings out;
    std::istringstream in(s);
    for (std::string part; std::getline(in, part, by);) out.push_back(part);
    return out;
}
static std::vector<Rule> read_rules() {
    std::vector<Rule> rules;
    std::istringstream in(GRAMMAR);
    for (std::string word, last; in >> word; last = word)
        if (word == "=" || word == "~") {
            if (!rules.empty()) rules.back().alts.back().second.pop_back(); // it was this rule's head
            rules.push_back({split(last, '.'), word == "~", {{1, {}}}});
        } else if (word == "|") {
            rules.back().alts.push_back({1, {}});
        } else if (word.back() == '*') {
            rules.back().alts.back().first = std::stod(word);
        } else if (!rules.empty()) {
            rules.back().alts.back().second.push_back(word);
        }
    return rules;
}
// otter+s: otter, otters. mend-s: mends, mend. is/are: is, are.
static std::string inflect(const std::string& word, bool plural) {
    size_t at = word.find_first_of("+-/");
    if (at == word.npos) return word;
    std::string stem = word.substr(0, at), rest = word.substr(at + 1);
    if (word[at] == '/') return plural ? rest : stem;
    return plural == (word[at] == '+') ? stem + rest : stem;
}

struct Compiler {
    Corpus c;
    std::vector<Rule> rules = read_rules();
    std::map<std::string, int> symbol_of, word_of;

    int symbol(const std::string& name) {
        auto [it, fresh] = symbol_of.try_emplace(name, (int)c.symbols.size());
        if (!fresh) return it->second;
        int id = it->second;
        c.symbols.push_back({name, 0, 0}), c.facts.push_back({});
        Strings args = split(name, '.');
        for (const Rule& rule : rules) {
            Values values;
            bool match = rule.head.size() == args.size();
            for (size_t i = 0; match && i < args.size(); i++)
                if (rule.head[i].size() == 1) values[rule.head[i]] = args[i];
                else match = rule.head[i] == args[i];
            if (!match) continue;
            define(id, rule, values);
            return id;
        }
        fail("corpus: no rule for %s", name.c_str());
    }
    void define(int id, const Rule& rule, const Values& values) {
        std::vector<Corpus::Alt> alts;
        double total = 0, sum = 0;
        auto weight = [&](size_t i) { return rule.skewed ? 1.0 / (double)(i + SKEW) : rule.alts[i].first; };
        for (size_t i = 0; i < rule.alts.size(); i++) total += weight(i);
        for (size_t i = 0; i < rule.alts.size(); i++) {
            std::vector<int> items;
            for (const std::string& item : rule.alts[i].second) items.push_back(compile(item, values));
            uint64_t from = alts.empty() ? 0 : alts.back().upto, upto = (uint64_t)((sum += weight(i)) / total * 0x1p32);
            if (i + 1 == rule.alts.size()) upto = 1ull << 32;
            double p = (double)(upto - from) * 0x1p-32;
            int first = (int)c.items.size();
            c.items.insert(c.items.end(), items.begin(), items.end());
            alts.push_back({p, -std::log(p), upto, first, (int)c.items.size()});
        }
        c.symbols[id].first = (int)c.alts.size();
        c.alts.insert(c.alts.end(), alts.begin(), alts.end());
        c.symbols[id].last = (int)c.alts.size();
        c.facts[id] = sum_up(alts);
    }
    int compile(const std::string& item, const Values& values) {
        auto value = [&](const std::string& s) { return values.count(s) ? values.at(s) : s; };
        if (item.size() > 1 && isupper((unsigned char)item[0]) && isupper((unsigned char)item[1])) {
            std::string name;
            for (const std::string& part : split(item, '.')) name += (name.empty() ? "" : ".") + value(part);
            return symbol(name);
        }
        std::string word = inflect(item, value("n") == "pl");
        if (word[0] == '$') word = value(word.substr(1));
        word = word == "^\\n" ? "\n" : word[0] == '^' ? word.substr(1) : " " + word;
        auto [it, fresh] = word_of.try_emplace(word, (int)c.words.size());
        if (fresh) c.words.push_back(word);
        return ~it->second;
    }
    // Rules never lead back to themselves, so everything below is known by now.
    Corpus::Facts sum_up(const std::vector<Corpus::Alt>& alts) const {
        Corpus::Facts f;
        f.min_words = 1 << 20;
        for (const Corpus::Alt& alt : alts) {
            Corpus::Facts sum;
            sum.nats = alt.nats, sum.same = alt.p * alt.p;
            for (int i = alt.first; i < alt.last; i++) {
                const Corpus::Facts g = c.items[i] >= 0 ? c.facts[c.items[i]] : facts_of(c.words[~c.items[i]]);
                sum.nats += g.nats, sum.bytes += g.bytes, sum.same *= g.same;
                for (int b = 0; b < 256; b++) sum.count[b] += g.count[b];
                sum.min_words += g.min_words, sum.max_words += g.max_words, sum.max_bytes += g.max_bytes;
            }
            f.nats += alt.p * sum.nats, f.bytes += alt.p * sum.bytes, f.same += sum.same;
            for (int b = 0; b < 256; b++) f.count[b] += alt.p * sum.count[b];
            f.min_words = std::min(f.min_words, sum.min_words), f.max_words = std::max(f.max_words, sum.max_words);
            f.max_bytes = std::max(f.max_bytes, sum.max_bytes);
        }
        return f;
    }
    static Corpus::Facts facts_of(const std::string& word) {
        Corpus::Facts f;
        for (unsigned char b : word) f.count[b]++;
        f.bytes = f.max_bytes = (int)word.size(), f.same = 1;
        f.min_words = f.max_words = isalnum((unsigned char)word.back()) && word[0] != '^';
        return f;
    }
};
const Corpus& corpus() {
    static const Corpus compiled = [] {
        Compiler compiler;
        compiler.symbol("TALE");
        return std::move(compiler.c);
    }();
    return compiled;
}
double corpus_floor() { return corpus().facts[0].nats / corpus().facts[0].bytes; }
double corpus_unigram() {
    double nats = 0, bytes = corpus().facts[0].bytes;
    for (double n : corpus().facts[0].count)
        if (n > 0) nats -= n / bytes * std::log(n / bytes);
    return nats;
}

// --- telling -----------------------------------------------------------------------------------------------------
struct Teller {
    const Corpus& c;
    uint64_t key, draws;
    std::string text;
    double nats;
    std::vector<int>* choices;
    void tell(int symbol) {
        uint64_t r = random_bits(key, draws++) >> 32;
        int a = c.symbols[symbol].first;
        while (r >= c.alts[a].upto) a++;
        nats += c.alts[a].nats;
        if (choices) choices->push_back(a);
        for (int i = c.alts[a].first; i < c.alts[a].last; i++)
            if (c.items[i] >= 0) tell(c.items[i]);
            else text += c.words[~c.items[i]];
    }
};
std::string tale(uint64_t seed, uint64_t stream, uint64_t i, double* nats, std::vector<int>* choices) {
    Teller t{corpus(), random_bits(random_bits(seed, stream), i), 0, {}, 0, choices};
    t.text.reserve(t.c.facts[0].max_bytes);
    t.tell(0);
    if (nats) *nats += t.nats;
    return t.text;
}
// A random byte lies in a tale with a probability proportional to the tale's length: throw a dart at a strip as long as
// the longest tale, and where it misses this tale try the next. (Any tale and any of its bytes would favour short ones.)
void excerpt(char* out, size_t n, uint64_t seed, uint64_t i) {
    const uint64_t key = random_bits(seed, ~i);
    for (uint64_t k = 0;; k++) {
        std::string text = tale(key, STREAM_TRAIN, k);
        size_t at = (size_t)((random_bits(key, k) >> 32) * (uint64_t)corpus().facts[0].max_bytes >> 32);
        if (at >= text.size()) continue;
        for (; n > 0; text = tale(key, STREAM_TRAIN, ++k), at = 0) {
            size_t m = std::min(n, text.size() - at);
            memcpy(out, text.data() + at, m);
            out += m, n -= m;
        }
        return;
    }
}
