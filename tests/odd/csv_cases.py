"""Odd csv and tsv: quotes, delimiters, line ends and headers. Line 302 is the first that is odd."""

from functools import partial

from tests.odd.text_cases import LONG, TEXTS, Case, among, csv_of, refused, tsv_of

row, tabs = partial(among, ".csv"), partial(among, ".tsv")
PLAIN = csv_of().decode()
MIXED = "line 22 ends in a line feed, but the lines before in a carriage return alone"
UNCLOSED, FIELDS = "unclosed quote", "number of fields"
NEVER = "line 302: has a quote that is never closed"
ONLY = "line 302: has a quote that is closed only by a quote in line"
DOGS = tuple(f"dog {number}" for number in range(8))
OTHERS = [f"other {number}" for number in range(300)]
ROWS = "".join(f"8,{dog}\n" for dog in DOGS).encode()

OPEN_QUOTES = [
    row("an open quote up to the end", b'8,"a cat', f"{NEVER}; close it", UNCLOSED),
    row(
        "an open quote that another row's quotes close",
        b'8,"a cat\n8,a dog\n8,"a bird, blue"',
        f"{ONLY} 304",
        UNCLOSED,
        kept=("a dog", "a bird, blue"),
    ),
    row(
        "an open quote that a sign for inches closes",
        b'8,"a cat\n' + ROWS + b'8,a pipe of 5"',
        f"{ONLY} 311",
        UNCLOSED,
        kept=(*DOGS, 'a pipe of 5"'),
    ),
    row(
        "an open quote in the first of two columns",
        b'"8,a cat\n8",a dog',
        f"{ONLY} 303",
        UNCLOSED,
        kept=("a dog",),
    ),
    row(
        "an open quote after a row of two lines",
        b'8,"a cat\non a mat"\n8,"a dog',
        "line 304: has a quote that is never closed",
        UNCLOSED,
        kept=("a cat on a mat",),
    ),
    row(
        "an open quote, and a row in Latin-1 after it",
        b'8,"a cat\n8,caf\xe9\n8,a dog',
        NEVER,
        UNCLOSED,
        "not UTF-8",
        kept=("a dog",),
    ),
    row(
        "an open quote that swallows odd rows too",
        b'8,"a cat\n8,a cow\n8,a bird, blue\n' + ROWS + b'8,a pipe of 5"',
        f"{ONLY} 313",
        UNCLOSED,
        FIELDS,
        kept=("a cow", *DOGS, 'a pipe of 5"'),
    ),
    Case(
        "an open quote, and only rows of another kind after it",
        "a.csv",
        csv_of(end=b'8,"a cat\n' + "".join(f"x,{other}\n" for other in OTHERS).encode()),
        [*TEXTS, *OTHERS[100:]],
        "line 602: has a quote that is never closed",
        {UNCLOSED: 101},
    ),
    row(
        "a quote inside quotes",
        b'8,"a "cat" here"',
        "line 302: has text after a closing quote; write a quote inside",
        "stray quote",
    ),
    row(
        "quotes that are not written twice, in the first of two lines",
        b'8,"He said ""hi"" and "ho" to\nme, too"',
        "line 302: has text after a closing quote",
        "stray quote",
        UNCLOSED,
    ),
    row(
        "quotes that are not written twice, in the second of three lines",
        b'8,"Steps:\n1, take "a bowl"\n2, fill it"',
        f"{ONLY} 303",
        UNCLOSED,
        UNCLOSED,
        UNCLOSED,
    ),
    row("a caption of two lines, and a comma without quotes", b'8,"a cat\nasleep",on a mat', "line 302: has 3", FIELDS),
    row(
        "a list with numbers, and a comma without quotes",
        b'8,"So:\n1, a bowl\n2, fill it", b',
        "line 302: has 3",
        FIELDS,
    ),
]

LINE_BREAKS = [
    row(
        "quotes, a comma and a line break inside",
        b'8,"a ""cat"", asleep\non, a, mat"',
        kept=('a "cat", asleep on, a, mat',),
    ),
    row(
        "two quoted lines that could be rows but for their first field",
        b'8,"a cat\non a mat, asleep"',
        kept=("a cat on a mat, asleep",),
    ),
    row(
        "a quoted caption of two lines with one comma each",
        b'8,"a cat, asleep\non a mat, blue"',
        kept=("a cat, asleep on a mat, blue",),
    ),
    row(
        "a quoted caption of three lines that could be rows",
        b'8,"it weighs\n8,000 grams\n9,000 grams"',
        kept=("it weighs 8,000 grams 9,000 grams",),
    ),
    row(
        "a quoted list with numbers",
        b'8,"Steps:\n1, take a bowl\n2, fill it\n3, eat\n4, a\n5, b\n6, c\n7, d\n8, e\n9, f"',
        kept=("Steps: 1, take a bowl 2, fill it 3, eat 4, a 5, b 6, c 7, d 8, e 9, f",),
    ),
    row(
        "a quoted dialogue",
        b'8,"""Hi"", she said,\n""it is late, go""\n8, he said"',
        kept=('"Hi", she said, "it is late, go" 8, he said',),
    ),
    row("a quoted caption that ends in a comma and a line break", b'8,"a cat,\n8,\n"', kept=("a cat, 8,",)),
    Case(
        "captions of two lines beside addresses",
        "a.csv",
        b'url,caption\nhttp://x/a.jpg,"Chapter one\nMist, over the hills"\nhttp://x/b.jpg,"Fog\nand, a ""sea"""\n',
        ["Chapter one Mist, over the hills", 'Fog and, a "sea"'],
    ),
    Case(
        "poems alone, of ten lines with a comma each",
        "a.csv",
        b'url,caption\nhttp://x/a.jpg,"' + b"Mist, over the hills\n" * 10 + b'"\n',
        ["Mist, over the hills " * 9 + "Mist, over the hills"],
    ),
]

TABS = [
    Case("tabs and the suffix tsv", "a.tsv", tsv_of()),
    Case("a comma in a file of tabs", "a.tsv", b"id\tcaption\n1\ta cat, asleep\n", ["a cat, asleep"]),
    tabs("signs for inches between tabs", b'8\t5" pipe\n8\ta pipe of 5"', kept=('5" pipe', 'a pipe of 5"')),
    tabs(
        "quotes between tabs that enclose nothing",
        b'8\t"Hi" she said\n8\t"an open one\n8\t"Hi"\n8\t"and" so on',
        kept=('"Hi" she said', '"an open one', '"Hi"', '"and" so on'),
    ),
    tabs(
        "quotes between tabs that enclose", b'8\t"a ""cat""\ton\na mat"\n8\t"a dog"', kept=('a "cat" on a mat', "a dog")
    ),
    tabs(
        "an open quote between tabs and quotes",
        b'8\t"a ""cat"""\n8\t"a dog',
        "line 303: has a quote that is never",
        UNCLOSED,
        kept=('a "cat"',),
    ),
]

CSV = [
    row(
        "a comma without quotes",
        b"8,a cat, asleep",
        "line 302: has 3 fields, expected 2 as in the header; put double quotes around a caption",
        FIELDS,
    ),
    row("fewer fields", b"8", "line 302: has 1 fields, expected 2", FIELDS),
    row("a sign for inches", b'8,a 5" pipe', kept=('a 5" pipe',)),
    Case("semicolons", "a.csv", PLAIN.replace(",", ";").encode()),
    Case("tabs", "a.csv", PLAIN.replace(",", "\t").encode()),
    Case("bars", "a.csv", PLAIN.replace(",", "|").encode()),
    Case("a first line that names the delimiter", "a.csv", b"sep=;\r\n" + PLAIN.replace(",", ";").encode()),
    refused(
        "a header that two delimiters fit",
        "a.csv",
        b"caption,a;caption\nx,y\n",
        "line 1: the header has the wanted columns with a comma and with a semicolon as delimiter",
    ),
    refused("a header with an open quote", "a.csv", b'id,"caption\n1,x\n', "line 1: has a quote in the header"),
    row("a field beyond Python's limit", f"8,{LONG}".encode(), "", "too long"),
    row("a line of 17 MB", b"8," + b"x" * 17_000_000, "line 302: is longer than 16 MB", "line too long"),
    Case("line ends of Windows", "a.csv", PLAIN.replace("\n", "\r\n").encode()),
    Case("line ends converted twice", "a.csv", PLAIN.replace("\n", "\r\r\n").encode()),
    Case("carriage returns alone", "a.csv", PLAIN.replace("\n", "\r").encode()),
    row("a carriage return in a row", b"8,a cat\r9,a dog", "line 302: has a carriage return inside", "carriage return"),
    row("a carriage return in quotes", b'8,"a cat\rasleep"', kept=("a cat asleep",)),
    Case(
        "a line feed among carriage returns",
        "a.csv",
        b"id,caption\r" + f"7,{LONG}\r".encode() * 20 + b"8,y\n",
        [],
        MIXED,
        {"too long": 20},
        damaged=MIXED,
    ),
    Case("empty lines and lines of spaces", "a.csv", b"\n  \n" + csv_of(b"", b"   ") + b"\n\n"),
    refused("an empty file", "a.csv", b"", "a.csv: is empty, expected a header"),
    refused("no caption column", "a.csv", b"id,words\n1,x\n", "no column caption, text or prompt; it has id, words"),
    Case("a header with spaces and capitals", "a.csv", PLAIN.replace("id,caption", "ID, Caption ").encode()),
    Case("a column TEXT", "a.csv", PLAIN.replace("caption\n", "TEXT\n").encode()),
    Case("a column Prompt", "a.csv", PLAIN.replace("caption\n", "Prompt\n").encode()),
    Case("columns text and caption", "a.csv", PLAIN.replace("id,caption", "Text,caption").encode()),
    refused(
        "two columns of one name", "a.csv", b"Text,TEXT\nx,y\n", "the columns 'Text' and 'TEXT' are both named text"
    ),
    refused("a header in Latin-1", "a.csv", "größe,caption\n1,x\n".encode("latin-1"), "line 1: not UTF-8 (byte 0xf6"),
    row("two files joined, each with a byte-order mark", b"\xef\xbb\xbf8,a cat", kept=("a cat",)),
    *OPEN_QUOTES,
    *LINE_BREAKS,
    *TABS,
]
