// What must not be seen in a text that goes to others: the second net, since the recorder has masked the record already.
// The rules and their words are those of the recorder (sidecar/masking.py); a change there belongs here too. Pure.

export const MASK = "***";

// Words of a name, alone or as neighbours, that make its value a secret.
const SECRET = new Set((
  "apikey api-key accesskey secretkey privatekey private-key key token authtoken secret secrets password passwd" +
  " passphrase pwd pass credential credentials bearer auth authorization cookie jwt"
).split(" "));
// Neighbours that hold such a word and are no secret.
const HARMLESS = new Set((
  "token-id token-ids token-step token-len token-length token-num token-count token-limit token-budget token-ratio" +
  " token-usage num-token max-token min-token pad-token eos-token bos-token stop-token mask-token special-token" +
  " image-token video-token audio-token pass-config key-file ssl-key"
).split(" "));
const WORD = /[A-Z]+(?![a-z])|[A-Z]?[a-z]+/g;

// `(?=(…))\N` takes as much as it can and gives nothing back, so that no text makes a pattern slow.
const NAMED = /(?<![\p{L}\p{N}_.-])(?=([\p{L}\p{N}_.-]+))\1["']?(?=(\s*))\2[=:](?=(\s*))\3/gu;
const VALUE = /"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|[^\s,;&}"']+/y;
const OPTION = /(?<![\p{L}\p{N}_-])(--?[A-Za-z][\p{L}\p{N}_.-]*)(?=\s)((?:\s+(?![-;&|])[^\s;&|]+)+)/gu;
const SCHEME = /\b((?:Bearer|Basic|Token)\s+)[A-Za-z0-9._~+/=-]{6,}/gi;
const USERINFO = /(?<=:\/\/)[^\s/]*@/g;
// What the big issuers' tokens look like, wherever they stand.
const LOOKS_SECRET = new RegExp([
  "hf_[A-Za-z0-9]{8,}", "api_org_[A-Za-z0-9]{8,}", "\\bsk[-_][A-Za-z0-9_-]{8,}", "\\bpk-[A-Za-z0-9_-]{16,}",
  "gh[pousr]_[A-Za-z0-9]{16,}", "github_pat_[A-Za-z0-9_]{16,}", "glpat-[A-Za-z0-9_-]{12,}", "\\bxox[a-z]-[A-Za-z0-9-]{8,}",
  "\\bA(?:KIA|SIA)[0-9A-Z]{12,}", "AIza[0-9A-Za-z_-]{20,}", "nvapi-[A-Za-z0-9_-]{12,}", "\\bya29\\.[A-Za-z0-9_-]{12,}",
  "(?<![\\w-])eyJ[A-Za-z0-9_-]{8,}\\.[A-Za-z0-9_.-]{8,}",
].join("|"), "g");

/** Whether an option, variable or key of this name holds a secret: `--api-key`, `HF_TOKEN`, `dbPassword`. */
export function isSecretName(name) {
  const words = (name.match(WORD) ?? []).map((word) => word.toLowerCase());
  const pairs = words.slice(1).map((word, at) => `${words[at]}-${word}`);
  pairs.forEach((pair, at) => {
    if (HARMLESS.has(pair)) words[at] = words[at + 1] = "";
  });
  // A beginning of an option is taken for the whole: --api-k.
  return [...words, ...pairs].some((word) => SECRET.has(word)) || words.join("-").startsWith("api-k");
}

/** `text` with every secret in it replaced, whatever stands around it: shell lines, URLs, JSON, headers, titles. */
export function maskText(text) {
  return maskNamed(text.replace(USERINFO, `${MASK}@`).replace(SCHEME, `$1${MASK}`))
    .replace(OPTION, (whole, name) => (isSecretName(name) ? `${name} ${MASK}` : whole))
    .replace(LOOKS_SECRET, MASK);
}

/** Mask the values of secret names. A value of another name is looked through too: `--url=http://h/?token=x`. */
function maskNamed(text) {
  const pieces = [];
  let done = 0;
  NAMED.lastIndex = 0;
  for (let named = NAMED.exec(text); named; named = NAMED.exec(text)) {
    if (named[0] === "") break;
    if (!isSecretName(named[1])) continue;
    VALUE.lastIndex = NAMED.lastIndex;
    const value = VALUE.exec(text)?.[0];
    if (!value) continue;
    const quote = value[0] === '"' || value[0] === "'" ? value[0] : "";
    pieces.push(text.slice(done, NAMED.lastIndex), quote, MASK, quote);
    done = NAMED.lastIndex += value.length;
  }
  return pieces.join("") + text.slice(done);
}

// Beyond the recorder's rules, for a text that leaves the house: better too much is masked than too little.
const PASSWORD_WITH_SLASH = /(?<=:\/\/[^\s/:@"'<>]{0,200}:)[^\s"'<>]{1,500}@(?=[^\s@/]{1,300})/g;
const COOKIES = /\b((?:set-)?cookie["']?\s{0,3}[:=]).*/gi;
const SIGNED = /((?:^|[?&;\s])(?:sig|[a-z-]{0,20}signature)=)[^\s&"'<>]+/gi; // who has the address of a signed URL has the file
const PRIVATE_KEY = /-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}-----|$)/g;
const ISSUED = /\b(?:npm_|dckr_pat_|gsk_|r8_|pypi-|dop_v1_|shpat_|glsa_|lin_api_|sntrys_)[A-Za-z0-9_-]{12,}|\bSG\.[\w-]{16,}\.[\w-]{16,}/g;
const MAIL = /(?<![\w.+-])[\w.+-]{1,64}@(?:[a-z0-9-]{1,63}\.)+[a-z]{2,}\b/gi;
const HOME = /((?:^|[\s"'=:(])\/(?:home|Users)\/)[^\s/"':)]+/g;

/** `text` without what only a text for others must not have: signed URLs, cookies, keys, people. Before the
 *  other two, which leave of a cookie or a URL only parts. */
export function maskFurther(text) {
  return text
    .replace(PRIVATE_KEY, MASK).replace(COOKIES, `$1 ${MASK}`).replace(SIGNED, `$1${MASK}`).replace(ISSUED, MASK)
    .replace(PASSWORD_WITH_SLASH, `${MASK}@`).replace(MAIL, "[mail]").replace(HOME, "$1[user]");
}

const IPV4 = /(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)/g;
const COLONS = /(?<![\w:.])[0-9a-f:]{2,}(?:\.\d{1,3}){0,3}(?:%\w+)?(?![\w:])/gi;
const IN_URL = /\b([a-z][a-z0-9+.-]{0,20}:\/\/)[^\s/"'<>]+/gi;
const DOTTED = /(?<![\w.-])(?=([a-z0-9.-]+))\1(?!\w)/gi;
const ENDINGS = new Set(["svc", "local", "internal", "lan", "intranet", "corp", "localdomain", "com", "net", "org", "io", "dev"]);
const NODE_NAME = /\b(?:ip-\d+(?:-\d+){3}|gke-[a-z0-9-]+|aks-[a-z0-9-]+)\b/gi;

/** `text` without addresses of machines: URLs' hosts, IP addresses, names that look like a machine's. */
export function maskHosts(text) {
  return text
    .replace(IN_URL, "$1[host]")
    .replace(COLONS, (found) => (isIpv6(found) ? "[address]" : found))
    .replace(IPV4, "[address]")
    .replace(DOTTED, (found) => (found.toLowerCase().split(".").slice(1).some((label) => ENDINGS.has(label)) ? "[host]" : found))
    .replace(NODE_NAME, "[host]");
}

/** A time of day has colons too, so it takes eight groups, or a gap. */
function isIpv6(text) {
  const plain = text.replace(/%.*$/, "").replace(/:\d+(?:\.\d+){3}$/, ":0:0");
  const groups = plain.split(":");
  if (groups.length < 3 || groups.some((group) => group.length > 4)) return false;
  return plain.includes("::") ? plain !== "::" && groups.length <= 9 : groups.length === 8;
}
