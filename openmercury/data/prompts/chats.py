"""Short everyday requests for the general share of a prompt set: questions, JSON, regular expressions, SQL, shell."""

from __future__ import annotations

import random

from openmercury.data.prompts.exercises import Slots, expand

SLOTS: Slots = {
    "pair": "a list and a tuple|a process and a thread|`==` and `is`|a shallow and a deep copy|`git merge` and `git "
    "rebase`|SQL INNER JOIN and LEFT JOIN|TCP and UDP|a stack and a queue|`let` and `var` in JavaScript|GET and "
    "POST|an abstract class and an interface|`append` and `extend`|unit tests and integration tests|SQL and "
    "NoSQL databases|`*args` and `**kwargs`|a generator and a list comprehension|synchronous and asynchronous "
    "code|a hash map and a balanced tree|compiled and interpreted languages|a pointer and a reference in "
    "C++|`map` and `flatMap`|UTF-8 and UTF-16|authentication and authorisation|a mutex and a semaphore",
    "topic": "recursion|closures|decorators in Python|dynamic programming|Big O notation|the event loop in "
    "JavaScript|garbage collection|hash collisions|dependency injection|database indexes|REST APIs|the global "
    "interpreter lock|list comprehensions|floating point rounding errors|regular expressions|binary search "
    "trees|race conditions|environment variables|HTTP caching|lambda functions|virtual environments|tail "
    "recursion|type hints in Python|docker images and containers|the SOLID principles|memoisation|continuous "
    "integration|pattern matching|iterators and iterables|unit testing|semantic versioning|JSON Web Tokens",
    "tool": "recursion|closures|a decorator|dynamic programming|a database index|a virtual environment|memoisation|a "
    "linked list|a hash map|a generator|an abstract base class|multithreading|a message queue|a NoSQL database|a "
    "regular expression|type hints|a message broker|GraphQL|WebSockets|a cache|a stored procedure|a lambda "
    "function|multiple inheritance|docker|a dataclass",
    "audience": "to a beginner|in three sentences|with a short code example|with an everyday analogy|in simple "
    "words|for someone who knows Java|in a few bullet points|step by step|in one paragraph|and name two common "
    "mistakes|and say when to avoid it",
    "person": "Maria Lopez|John Smith|Aiko Tanaka|Omar Haddad|Lena Fischer|Priya Nair|Tom Baker|Chen Wei|Sara "
    "Lind|Ivan Petrov",
    "city": "Lisbon|Toronto|Nairobi|Oslo|Austin|Kyoto|Lima|Dublin|Prague|Sydney|Mumbai|Berlin",
    "age": "19|23|28|31|37|42|45|56|63",
    "job": "a nurse|an architect|a software engineer|a chef|a teacher|a pilot|an accountant|a photographer|a biologist",
    "when": "2021-03-14|2022-11-02|2023-07-19|2024-01-30|2024-09-05|2025-04-21",
    "goods": "notebooks|lamps|keyboards|coffee mugs|backpacks|headphones|desk chairs|water bottles",
    "sql_table": "orders(id, customer_id, total, created_at)|employees(id, name, department, salary)|products(id, "
    "name, price, stock)|students(id, name, course, grade)|logins(user_id, ip, time)|books(id, title, author, "
    "year)|flights(id, origin, destination, delay)|reviews(id, product_id, stars, text)",
    "sql_query": "returns the number of rows per [col]|returns the [k] rows with the highest value in [col]|finds "
    "duplicate rows by [col]|returns the average of [col] per group|adds an index on [col]|deletes rows older "
    "than a year|returns the running total by [col]|returns the second highest value of [col]|returns rows whose "
    "[col] is above the average|returns the latest row of each group|counts the rows of the last [k] "
    "days|updates one column by 10 percent|returns the median of [col]|pages through the rows, [k] at a time",
    "col": "the second column|the third column|the last column",
    "k": "2|3|5|7|10|20|30",
    "regex": "an email address|a US phone number|a hex colour code|a date in the form YYYY-MM-DD|an IPv4 address|a "
    "floating point number|a quoted string|a Python identifier|a 24-hour time|an HTML tag|a UUID|a word that "
    "occurs twice in a row|a line that ends in a semicolon|a URL with an optional port|a German postcode|a "
    "version number such as 1.2.3|a hashtag|a username of letters, digits and underscores|an amount of money "
    "with two decimals|a Windows file path|a comment in Python|a CSV field|a credit card number in groups of "
    "four|words of at least [k] letters|lines without the word error|an even binary number",
    "lang": "Python|JavaScript|Java|Go|grep|sed|Rust|PHP",
    "shell": "finds all files larger than [k] MB|counts the lines of all Python files|renames all .jpeg files to "
    ".jpg|shows the [k] largest folders|replaces a word in all text files|lists the processes that use a "
    "port|backs up a folder with the date in its name|deletes empty folders|prints the [k]th column of a "
    "file|sorts a file and removes duplicates|waits until a server answers|shows the [k] most frequent words of "
    "a file|finds files changed in the last [k] days|compares two folders|splits a file into parts of [k] "
    "MB|shows disk usage above [k]0 percent|kills a process by name|extracts all archives in a folder",
    "git": "undo the last commit but keep the changes|squash the last [k] commits|delete a remote branch|find the "
    "commit that introduced a bug|stash only one file|rename a branch|see who changed a line|remove a file from "
    "history|cherry-pick a commit|resolve a merge conflict|list branches merged into main|change the last commit "
    "message|ignore a file that is tracked",
    "json": "a user profile with name, age, email and a list of [k] hobbies|a shopping cart with [k] [goods]|a "
    "weather report for [city]|a configuration for a web server on port 80[k]|a list of [k] books with title, "
    "author and year|a playlist of [k] songs|a JSON Schema for an order of [goods]|a calendar event on [when] in "
    "[city]|a menu of a small cafe with [k] items|a list of [k] random coordinates near [city]|a bug report with "
    "steps to reproduce|an error response with a code and details",
    "error": "IndexError: list index out of range|KeyError: 'name'|TypeError: 'NoneType' object is not "
    "subscriptable|RecursionError: maximum recursion depth exceeded|UnboundLocalError: local variable referenced "
    "before assignment|ModuleNotFoundError: No module named 'requests'|ValueError: too many values to "
    "unpack|IndentationError: unexpected indent|UnicodeDecodeError: 'utf-8' codec can't decode "
    "byte|ZeroDivisionError: division by zero|JSONDecodeError: Expecting value|Segmentation fault (core "
    "dumped)|NullPointerException|undefined is not a function|CORS policy: no "
    "Access-Control-Allow-Origin|TypeError: unhashable type: 'list'|AttributeError: 'list' object has no "
    "attribute 'split'|ConnectionRefusedError",
    "where": "while looping over a list|in a Flask app|when reading a file|in a recursive function|after an "
    "update|when I run my tests|in a web scraper|when parsing an API response|in a script that worked "
    "yesterday|in a Jupyter notebook|in production",
    "page": "a login form|a to-do list|a responsive navigation bar|a photo gallery|a countdown timer|a calculator|a "
    "dark mode switch|a pricing table|a contact form with validation|a progress bar|a modal dialog|a quiz with "
    "[k] questions|a sortable table",
    "web": "HTML and CSS|plain JavaScript|React|Vue|a single HTML file|TypeScript and React|Tailwind CSS",
    "script": "downloads all images of a web page|renames photos by date|sends a daily email report|watches a folder "
    "for new files|converts CSV to JSON|checks whether websites are up|plots a CSV column|merges PDF files|backs "
    "up a SQLite database|resizes images to [k]00 pixels|scrapes headlines|encrypts a file with a "
    "password|generates random passwords of length [k]|tracks prices|parses command-line arguments and prints a "
    "greeting|reads a YAML configuration|serves a folder over HTTP|counts words in files|rolls [k] dice|plays "
    "hangman in the terminal|simulates a queue at a bank|calls a REST API with retries|logs CPU usage",
    "small": "Give me [k] names for a [project]|Write a haiku about [topic]|Write a commit message for a change that "
    "adds [page]|Write a README outline for a [project]|Suggest a project structure for a [project]|What are the "
    "trade-offs of [topic]?|Write [k] interview questions about [topic]|Write a polite email that asks [person] "
    "for a code review|Translate 'The build failed, please check the logs' to [human]|List [k] best practices "
    "for [topic]|Write a short bug report about [page] that is broken|Plan a week of learning [topic], [k] hours "
    "in total|Summarise [topic] in [k] sentences|How many seconds are in [k] days?|What is [age] percent of "
    "[k]00? Show the steps|Write a Dockerfile for a [project]|Write a Makefile for a [project]|Write a GitHub "
    "Actions workflow for a [project]|Write unit tests for a function that [script]",
    "project": "Flask application|Node.js service|command-line tool in Go|chat bot|static blog|Python library|React "
    "app|weather app|recipe website|small game in Python|Rust crate|data pipeline|budget tracker|URL "
    "shortener|Java web service",
    "human": "Spanish|German|French|Japanese|Portuguese|Italian|Polish",
}
_PATTERNS = (
    "What is the difference between [pair]?",
    "Explain the difference between [pair] [audience].",
    "Explain [topic] [audience].",
    "When should I use [tool], and when not?",
    "When is it better to use [tool]? Answer [audience].",
    (
        'Extract the name, age, city and job as JSON from this text: "[person], [age], lives in [city] and works as '
        '[job]."'
    ),
    'Return a JSON object with the fields "name", "date" and "place" for: [person] arrived in [city] on [when].',
    "Turn this into a JSON array of objects: [person] bought [k] [goods]; [person] bought [k] [goods].",
    "Write example JSON for [json].",
    "Give me only JSON, no explanation: [json].",
    "Write a regular expression that matches [regex].",
    "Write a regex in [lang] that finds [regex], and explain it.",
    "Given the table [sql_table], write a SQL query that [sql_query].",
    "Write a bash command that [shell].",
    "Write a bash script that [shell] and prints a usage message when called without arguments.",
    "How do I [git] in git?",
    "I get `[error]` [where]. What does it mean and how do I fix it?",
    "Why do I see `[error]` [where]?",
    "Build [page] with [web].",
    "Create [page] using [web]. Keep it under [age] lines.",
    "Write a Python script that [script].",
    "Write a [lang] program that [script].",
    "[small].",
)


def chats(count: int, seed: int) -> list[str]:
    """Up to `count` distinct requests in a random but fixed order."""
    generator = random.Random(seed)
    found: dict[str, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        text = expand(generator.choice(_PATTERNS), SLOTS, generator).replace("?.", "?")
        if not any(f"a {tool} program" in text for tool in ("grep", "sed")):
            found[text] = None
    return list(found)
