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
TALE = ^Ada HOME.Ada.she | ^Amy HOME.Amy.she | ^Eve HOME.Eve.she | ^Ida HOME.Ida.she | ^Ivy HOME.Ivy.she | ^Mia HOME.Mia.she | ^Una HOME.Una.she | ^Zoe HOME.Zoe.she
     | ^Abe HOME.Abe.he  | ^Ben HOME.Ben.he  | ^Gus HOME.Gus.he  | ^Hal HOME.Hal.he  | ^Leo HOME.Leo.he  | ^Ned HOME.Ned.he  | ^Tom HOME.Tom.he  | ^Vic HOME.Vic.he
NAME     = NAME.she | NAME.he
NAME.she = Ada | Amy | Eve | Ida | Ivy | Mia | Una | Zoe
NAME.he  = Abe | Ben | Gus | Hal | Leo | Ned | Tom | Vic

HOME.w.k = sails AREA.k.sea STORY.w.k.sea | farms AREA.k.land STORY.w.k.land
AREA.k.t = FAR AREAS.k.t AND VERB.k.sg.t ^.
AREAS.k.t = the OBN.place.t | HIS.k.sg OBN.place.t | MANY OBM.place.t
STORY.w.k.t = LINE.k.t LINE.k.t LINE.k.t MORE.w.k.t
MORE.w.k.t  = 2* LINE.k.t LINE.k.t LAST.w.k.t | CLOSE.w.k.t
LAST.w.k.t  = 2* LINE.k.t LINE.k.t CLOSE.w.k.t | CLOSE.w.k.t
CLOSE.w.k.t = So FANS VLORE.pl OBJ.lore.k.pl.t to $w AND VERB.k.pl.t ^. ^\n
FANS = NOUN.she.pl.x | NOUN.he.pl.x | ADJ.life FAN
FAN  = NOUN.she.pl.x | NOUN.he.pl.x

LINE.k.t = 4* The ONE.t | 2* Each SINGLE.t | 3* MANYcap PLURAL.t | 4* HEcap.k VERB.k.sg.t AS CLAUSE.t ^.
         | 3* NAME.she NAMED.she.t | 3* NAME.he NAMED.he.t
NAMED.k.t = and NAME TOLD.k.pl.t | 2* MOD.k.sg.t VERB.k.sg.t THEN.k.sg.t
ONE.t     = 2* ADJ.life ONES.t | 3* ONES.t
ONES.t    = 2* SINGLES.t | MANYS.t
SINGLE.t  = 2* ADJ.life SINGLES.t | 3* SINGLES.t
PLURAL.t  = 2* ADJ.life MANYS.t | 3* MANYS.t
SINGLES.t = 2* NOUN.she.sg.t TOLD.she.sg.t | 2* NOUN.he.sg.t TOLD.he.sg.t | 3* NOUN.it.sg.t TOLD.it.sg.t
MANYS.t   = 2* NOUN.she.pl.t TOLD.she.pl.t | 2* NOUN.he.pl.t TOLD.he.pl.t | 3* NOUN.it.pl.t TOLD.it.pl.t
TOLD.k.n.t = 3* MOD.k.n.t VERB.k.n.t THEN.k.n.t | 2* VERB.k.n.t AS CLAUSE.t ^.
THEN.k.n.t = 4* AND VERB.k.n.t ^. | AS HE.k.n VERB.k.n.t ^.
CLAUSE.t  = 2* the CLAUSES.t | NAME and NAME VERB.she.pl.t | 2* ADJ.life CLAUSEM.t
CLAUSES.t = CLAUSEM.t | NOUN.she.sg.t VERB.she.sg.t | NOUN.he.sg.t VERB.he.sg.t | NOUN.it.sg.t VERB.it.sg.t
CLAUSEM.t = NOUN.she.pl.t VERB.she.pl.t | NOUN.he.pl.t VERB.he.pl.t | 2* NOUN.it.pl.t VERB.it.pl.t
MOD.k.n.t = 2* FAR OBJ.place.k.n.t | 3* REL.k DOES.k.n.t
DOES.k.n.t  = 2* DOES1.k.n.t | SEEN.t
SEEN.t  = the SEENS.t | NAME VLIKE.sg | 2* SEENM.t
SEENS.t = NOUN.she.sg.t VLIKE.sg | NOUN.he.sg.t VLIKE.sg | NOUN.it.sg.t VLIKE.sg | SEENM.t
SEENM.t = NOUN.she.pl.t VLIKE.pl | NOUN.he.pl.t VLIKE.pl | NOUN.it.pl.t VLIKE.pl

VERB.it.n.t = 2* VREST.n FAR OBJ.place.it.n.t | 3* DOES1.it.n.t
VERB.k.n.t  = VREST.n FAR OBJ.place.k.n.t | 5* DOES1.k.n.t
DOES1.it.n.t = 2* VEAT.n OBJ.any.it.n.t | 3* VLIKE.n OBJ.all.it.n.t
DOES1.k.n.t  = 3* VHOLD.n OBJ.any.k.n.t | VCOOK.n OBJ.food.k.n.t | VLORE.n OBJ.lore.k.n.t | 2* VLIKE.n OBJ.all.k.n.t
VHOLD.n ~ sell-s | buy-s | find-s | need-s | hold-s | lose-s | mend-s | lend-s | hide-s | want-s | lift-s | like-s | keep-s | paint-s
VCOOK.n ~ cook-s | bake-s | cut-s | chop-s | boil-s
VLORE.n ~ sing-s | tell-s | hum-s | hear-s | read-s
VEAT.n  ~ eat-s | lick-s | bite-s | dig-s
VLIKE.n ~ love-s | see-s | fear-s | meet-s | hate-s | help-s | hug-s | wake-s | call-s | pet-s | know-s | miss-es
VREST.n ~ sit-s | rest-s | play-s | run-s | wait-s | nap-s | stay-s | doze-s

OBJ.all.k.n.t = 4* the OBN.all.t | HIS.k.n OBN.all.t | 2* ONE OBO.all.t | 2* MANY OBM.all.t | 6* OBM.all.t | 3* NAME
OBJ.c.k.n.t = 4* the OBN.c.t | HIS.k.n OBN.c.t | 2* ONE OBO.c.t | 2* MANY OBM.c.t | 6* OBM.c.t
OBN.c.t = ADJ.c OBX.c.t | OBX.c.t
OBX.c.t = NOUN.c.sg.t | NOUN.c.pl.t
OBO.c.t = ADJ.c NOUN.c.sg.t | NOUN.c.sg.t
OBM.c.t = ADJ.c NOUN.c.pl.t | NOUN.c.pl.t
ONE   = one | each | this | that
MANY  = two | six | ten | 3* TENS DIGIT
MANYcap = Two | Six | Ten | 3* TENS DIGIT
TENS  = 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9
DIGIT = ^0 | ^1 | ^2 | ^3 | ^4 | ^5 | ^6 | ^7 | ^8 | ^9
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
REL.it = that
REL.k  = who
FAR = by | off | near | with | past | over | on | up | at | in
AND = and | or | then | yet | nor
AS  = as | if | so | but | for | till | when

ADJ.life ~ old | sad | big | new | odd | shy | wise | sly | fat | kind | mad | bold | tiny | red | wet | thin | fine | cold | lost | poor | good | tall | calm | dark | lame | pale
ADJ.c    ~ old | sad | big | new | odd | red | long | dry | blue | gold | tiny | hot | wet | thin | fine | cold | lost | poor | good | raw | dark | pale | wide | soft | wise
NOUN.life.n.t = NOUN.she.n.t | NOUN.he.n.t | 2* NOUN.it.n.t
NOUN.she.n.t  ~ aunt+s | girl+s | nun+s | queen+s | maid+s | wife/wives | bride+s | mom+s
NOUN.he.n.t   ~ king+s | boy+s | monk+s | lad+s | duke+s | clown+s | dad+s | groom+s
NOUN.it.n.sea  = 2* FISH.n | BEAST.n
NOUN.it.n.land = FISH.n | 2* BEAST.n
FISH.n  ~ gull+s | crab+s | seal+s | eel+s | cod+s | tern+s | ray+s | swan+s | frog+s | newt+s | crane+s | shark+s
BEAST.n ~ cow+s | hen+s | pig+s | goat+s | dog+s | cat+s | duck+s | rat+s | owl+s | ant+s | mule+s | lamb+s
NOUN.any.n.t = 3* NOUN.thing.n.t | NOUN.life.n.t
NOUN.all.n.t = NOUN.thing.n.t | 2* NOUN.life.n.t
NOUN.thing.n.t = 3* NOUN.tool.n.t | 2* NOUN.food.n.t
NOUN.tool.n.sea  = 2* GEAR.n | TOOL.n
NOUN.tool.n.land = GEAR.n | 2* TOOL.n
GEAR.n ~ net+s | oar+s | sail+s | rope+s | boat+s | flag+s | hook+s | drum+s | mast+s | raft+s
TOOL.n ~ cart+s | plow+s | rake+s | gate+s | bell+s | sack+s | hoe+s | pail+s | axe+s | saw+s
NOUN.food.n.t  ~ fig+s | nut+s | egg+s | pie+s | bun+s | pear+s | plum+s | pea+s | bean+s | oat+s | cake+s | tart+s
NOUN.lore.n.t  ~ song+s | tale+s | joke+s | poem+s | lie+s | ode+s | pun+s | hymn+s | myth+s | note+s
NOUN.place.n.sea  = 2* SHORE.n | FIELD.n
NOUN.place.n.land = SHORE.n | 2* FIELD.n
SHORE.n ~ pier+s | dock+s | reef+s | cove+s | dune+s | bay+s | isle+s | port+s | ship+s | rock+s
FIELD.n ~ barn+s | oak+s | well+s | mill+s | lane+s | pond+s | hill+s | den+s | hut+s | yard+s
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
