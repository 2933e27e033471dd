"""Exercises from a small grammar: a pattern with `[slots]`, each slot a choice of phrases, drawn by a seeded generator.

An exercise is a task in words ("return the sum of the even numbers in a list"), the arguments and types it speaks of,
and sometimes a condition for edge cases. Forms (a request, a stub to complete, another language) are added in `tasks`.
The file is long since nearly all of it is one table of phrases.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

Slots = dict[str, str]

_SHARED: Slots = {
    "k": "2|3|4|5|7|10",
    "n": "0|1|10|50|100|1000",
    "letter": "a vowel|a consonant|an uppercase letter|the letter 'e'|a digit|a given character `ch`",
    "order": "in ascending order|in descending order|in their original order",
    "agg": "sum|product|average|maximum|minimum|median|count|range (maximum minus minimum)|sum of squares|"
    "greatest common divisor|second largest value|mode|running total|geometric mean|variance",
    "name_query": "the [k] names with the [extreme] [field]|the names whose [field] is above [n]|the average "
    "[field]|the names sorted by [field]|the names grouped by [field]|the rank of each name|the names whose "
    "[field] is above the average|the name with the [extreme] [field]|the [field] values scaled to the range 0 "
    "to 1|the names that share their [field] with another name|the share of each name in the total as a "
    "percentage|the names in buckets of width [k]|the median [field]|the names that [kpred] with their "
    "[field]|the total [field] of the names that [kpred]|a text table aligned in columns",
}

_NUMBERS: Slots = {
    "pred": "are even|are odd|are prime|are positive|are negative|are divisible by [k]|are not divisible by [k]|"
    "are greater than [n]|are less than [n]|are perfect squares|appear exactly once|appear more than [k] times|"
    "are at even indices|are at odd indices|are greater than the element before them|are local minima|"
    "are smaller than both neighbours|are powers of two|are palindromes when written in decimal|"
    "have an even number of digits|have a digit sum divisible by [k]|end in the digit [k]|are above the average of the "
    "list|are between `low` and `high` inclusive|are at indices divisible by [k]|differ from their predecessor by at "
    "most [k]|are multiples of both 2 and 5|contain the digit [k]|are triangular numbers|are Fibonacci numbers",
    "window": "contiguous subarray of length [k]|non-empty contiguous subarray|pair of elements|pair of adjacent "
    "elements|triple of distinct indices|prefix|suffix|increasing run|run of equal elements|sliding window of size `k`",
    "measure": "sum|product|maximum|spread between maximum and minimum|number of distinct values|average|XOR|"
    "sum of absolute values|number of even elements|alternating sum",
    "move": "move all zeros to the end|put the even numbers before the odd ones|rotate it to the right by `k` "
    "places|rotate it to the left by `k` places|interleave its first half with its second half|replace each element "
    "with the product of all the others|replace each element with its rank|replace each element by the next greater "
    "element to its right, or -1|replace each negative number with the nearest positive number to its left|remove "
    "consecutive duplicates|remove every [k]th element|split it into chunks of size [k]|swap the first and last "
    "occurrence of the maximum|keep only the last occurrence of each value|sort it by the number of set bits|sort it "
    "by distance from `target`|sort it by last digit, then by value|group it into runs of consecutive integers|double "
    "every [k]th element|clip every value to the range from `low` to `high`|subtract the minimum from every element|"
    "reverse every block of [k] elements|partition it around a pivot value|compute the differences of neighbours "
    "until one value remains|normalise it to sum to 1|turn it into cumulative maxima|bin it into [k] equal intervals",
    "gives": "the sum|the indices|the number|the smallest|the largest|the positions and values|the product|a "
    "dictionary from value to indices",
}

_STRINGS: Slots = {
    "scope": "each word of a sentence|every word longer than [k] characters|every other word|every [k]th "
    "character|each line of a text|the first and last word|words that start with [letter]|words that contain "
    "[letter]|each run of digits|the part between the first pair of parentheses|each sentence|each "
    "comma-separated field|the longest word|words that occur more than once|each hyphenated word",
    "edit": "Reverse [scope] in a string|Capitalise [scope] in a string|Uppercase [scope] in a string|Replace "
    "[scope] in a string with its length|Remove [scope] from a string|Duplicate [scope] in a string|Sort the "
    "letters of [scope]|Remove the vowels from [scope]|Replace the digits in [scope] with '[mark]'|Mask all but "
    "the last [k] characters of [scope] with '[mark]'|Swap the case of [scope]|Shift [scope] by [k] positions in "
    "the alphabet|Wrap [scope] in square brackets|Strip the punctuation from [scope]|Remove repeated letters "
    "from [scope]|Pad [scope] with '[mark]' to width [k]|Move the first letter of [scope] to its end|Translate "
    "[scope] to pig Latin|Count the distinct letters of [scope]|Join [scope] with '[mark]'|Return the positions "
    "of [scope] in a string",
    "thing": "words|characters|distinct words|vowels|consonants|uppercase letters|digits|lines|sentences|palindromic "
    "words|words of length [k]|words that start with [letter]|words that end with [letter]|punctuation "
    "marks|numbers|email addresses|hashtags|URLs|dates in the form YYYY-MM-DD|repeated words|spaces|substrings "
    "of length [k]|pairs of equal adjacent characters|letters that occur exactly once|anagram pairs|balanced "
    "bracket pairs|title-case words",
    "report": "Count the [thing] in a string|Return the [thing] in a string [sorder]|Return the most common [thing] "
    "in a string|Return the positions of all [thing] in a string|Return the longest of the [thing] in a "
    "string|Remove all [thing] from a string|Return a dictionary that counts the [thing] in a string|Check "
    "whether a string contains at least [k] [thing]|Split a string into a list at the [thing]|Compare two "
    "strings by their number of [thing]|Replace all [thing] in a string with '[mark]'|Return the share of "
    "[thing] in a string as a percentage with one decimal|Return the shortest substring that holds all [thing] "
    "of a string|Highlight the [thing] in a string with '[mark]'",
    "sorder": "in alphabetical order|in order of first appearance|by descending frequency|by length|without duplicates",
    "mark": "*|_|#|-|?|~",
    "check": "a valid IPv4 address|a valid hexadecimal colour|a valid Python identifier|a palindrome when case and "
    "punctuation are ignored|an anagram of another string|a rotation of another string|a subsequence of another "
    "string|a valid ISBN-10|a valid 24-hour time|a balanced sequence of (), [] and {}|a pangram|an isogram|a "
    "valid phone number of the form (ddd) ddd-dddd|a strong password with at least [k] characters, a digit and "
    "an uppercase letter|in camelCase|in snake_case|a valid Roman numeral|a valid MAC address|a valid semantic "
    "version|periodic, that is a repetition of a shorter string|made of characters that all occur equally "
    "often|a valid UUID|a valid date in the form DD/MM/YYYY|sorted alphabetically|a number in scientific "
    "notation|a valid Morse code message|a credit card number by Luhn's rule",
    "convert": "snake_case to camelCase|camelCase to snake_case|a title to a URL slug|kebab-case to PascalCase|an "
    "integer to a Roman numeral|a Roman numeral to an integer|a number to English words up to [n]|seconds to the "
    "form HH:MM:SS|a duration like '2h 35m' to minutes|a hex colour to an RGB tuple|an RGB tuple to a hex "
    "colour|text to Morse code|Morse code to text|text to a Caesar cipher with shift [k]|a string to its "
    "run-length encoding|a run-length encoding to the original string|a query string to a dictionary|a "
    "dictionary to a query string|a CSV line with quoted fields to a list|bytes to a human-readable size|a "
    "version string to a comparable tuple|a sentence to an acronym|a binary string to a decimal integer|a "
    "decimal integer to base [k]|a column number to an Excel column name|a DNA string to its reverse "
    "complement|a chess square like 'e4' to row and column|Celsius readings to Fahrenheit|INI text to nested "
    "dictionaries|a Markdown table to a list of dictionaries|a path with '..' parts to a canonical path|a nested "
    "list to an indented text outline|a fraction string to a mixed number|ISO week notation to a date",
}

_RECORDS: Slots = {
    "entity": "students|employees|products|orders|books|movies|cities|transactions|tasks|players|flights|recipes|"
    "sensors|songs|invoices|patients|cars|tickets|courses|messages|hotels|machines|accounts|parcels",
    "field": "score|price|age|rating|quantity|salary|year|duration|weight|distance|priority|date|amount|size",
    "group": "category|city|department|month|owner|status|country|type|first letter of the name|tag|team|colour",
    "query": "the [entity] with the highest [field]|the average [field] of the [entity] per [group]|the [entity] "
    "whose [field] is above [n]|the total [field] of the [entity] by [group]|the names of the [entity] sorted by "
    "[field]|the top [k] [entity] by [field]|the [group] with the most [entity]|the [entity] grouped by "
    "[group]|the [entity] that have no [field]|the number of [entity] in each [group]|the median [field] of the "
    "[entity]|the [entity] without duplicates by [group]|the two [entity] whose [field] values are closest|the "
    "[entity] sorted by [group] and then by descending [field]|the share of [entity] in each [group] as a "
    "percentage|the lowest [field] of the [entity] in each [group]|the [entity] whose [field] lies more than one "
    "standard deviation from the mean|a running total of the [field] of the [entity]|the [field] range of the "
    "[entity] per [group]|the [entity] on page `page` with [k] per page",
    "dict_query": "the keys whose value is [dpred]|the sum of the values that are [dpred]|a new dictionary without "
    "the entries whose value is [dpred]|the inverted dictionary, with lists for repeated values|the keys sorted "
    "by value|the key with the [extreme] value|the dictionary merged with another one, adding the values of "
    "common keys|the dictionary flattened with dotted keys|the keys that both dictionaries share|the difference "
    "between two dictionaries as added, removed and changed keys|the entries as a list of tuples sorted by "
    "[dsort]|a dictionary from value to the number of keys that have it|the value at a dotted path such as "
    "'a.b.c', or a default|the nested dictionary built from dotted keys|the dictionary with all keys converted "
    "to [case]|the depth of a nested dictionary|the dictionary split in two by whether the value is [dpred]|the "
    "[k] entries with the [extreme] values|the mean value of keys that [kpred]",
    "dpred": "even|negative|None|an empty string|greater than [n]|a list|a string|above the average|below "
    "[n]|missing or empty|a number|repeated elsewhere in the dictionary|divisible by [k]|of type bool",
    "extreme": "largest|smallest|second largest|longest|shortest",
    "dsort": "key|value|value and then key|length of the key|descending value",
    "case": "lowercase|uppercase|snake_case|camelCase|strings",
    "kpred": "start with [letter]|have more than [k] characters|end with [letter]|contain an underscore",
}

_GRIDS: Slots = {
    "part": "each row|each column|the main diagonal|the anti-diagonal|the border|the upper triangle|the lower "
    "triangle|every [square] block|the four corners|the inner cells without the border|both diagonals|the even "
    "rows|the odd columns",
    "matrix": "Return the [agg] of [part] of a matrix|Check whether [part] of a matrix [mcheck]|Replace [part] of a "
    "matrix with [fill]|Return a copy of a matrix with [part] reversed|Return a copy of a matrix with [part] "
    "sorted [order]|Return the elements of [part] of a matrix in spiral order|Count the elements of [part] of a "
    "matrix that are [dpred]|Swap [part] with [part] in a square matrix|[gridverb]",
    "square": "2x2|3x3|4x4",
    "mcheck": "holds only distinct values|is sorted|has sum [n]|holds only zeros|is symmetric|contains a given "
    "value|holds a permutation of 1..n|is strictly increasing",
    "fill": "zeros|its cumulative sums|its maximum|its mean|the value [n]|alternating 0 and 1|its values modulo [k]",
    "gridverb": "Rotate a square matrix by 90 degrees [turn]|Count the islands of 1s in a binary grid|Return the "
    "length of the shortest path through a grid with walls|Flood-fill a region of a grid with a new "
    "colour|Return the size of the largest square of 1s in a binary grid|Multiply two matrices without "
    "numpy|Compute the next generation of Conway's Game of Life|Count the neighbours of each cell that are "
    "mines|Transpose a ragged list of rows|Find all saddle points of a matrix|Return the number of paths from "
    "the top left to the bottom right that avoid blocked cells|Check whether a tic-tac-toe board has a "
    "winner|Find a word in a letter grid [turn2]|Raise a square matrix to the power `n`|Compute the determinant "
    "of a [square] matrix|Solve a system of linear equations by Gaussian elimination|Fill a matrix with numbers "
    "in [fillorder] order|Downsample a grid by averaging blocks of [square] cells",
    "turn": "clockwise|anticlockwise|in place|without changing the original",
    "turn2": "horizontally|vertically|in all eight directions|by moving to adjacent cells",
    "fillorder": "spiral|zigzag|diagonal|column-major|snake",
    "dpred": _RECORDS["dpred"],
}

_TIMES: Slots = {
    "fmt": "YYYY-MM-DD|DD/MM/YYYY|ISO 8601|'Month day, year'|MM-DD-YYYY",
    "span": "the number of days|the number of working days|the number of weekends|the number of full months|the "
    "number of leap days|the number of [weekday]s|the number of seconds|the age in years",
    "weekday": "Monday|Tuesday|Friday|Sunday|Thursday",
    "month": "a month|a year|a quarter|the current week|a leap year",
    "date": "Return [span] between two dates given as [fmt]|Return the date of the [nth] [weekday] of [month]|Return "
    "all [weekday]s of [month] as [fmt] strings|Convert a date from [fmt] to [fmt]|Return the next date after a "
    "given one that is a [weekday]|Check whether two time intervals overlap|Merge overlapping date ranges given "
    "as [fmt]|Return the free slots of at least [k] minutes between meetings|Format a duration in seconds as "
    "[dform]|Round a time to the nearest [k] minutes|Return the day of the year of a date given as [fmt]|Add [k] "
    "[unit] to a date given as [fmt]|Group timestamps by [unit2]|Return the earliest and the latest of a list of "
    "[fmt] dates|Return the longest gap between consecutive timestamps, in [unit]|Validate a date string in "
    "[fmt] format|Return the calendar quarter of a date given as [fmt]|Parse a relative time such as '[k] days "
    "ago'|Convert a 12-hour clock time to 24-hour time|Count the events of the last [k] [unit]",
    "nth": "first|second|third|last",
    "dform": "days, hours, minutes and seconds|HH:MM:SS|the largest unit only|ISO 8601",
    "unit": "days|weeks|business days|months|hours|minutes",
    "unit2": "hour|weekday|month|day|calendar week",
}

_TREES: Slots = {
    "tree": "a binary tree|a binary search tree|an n-ary tree|a tree given as nested dictionaries|a tree given as a "
    "parent array|a trie",
    "tree_task": "Return the [tmeasure] of [tree]|Return the values of [tree] in [walk]|Check whether [tree] is "
    "[tprop]|Find the [tfind] in [tree]|Insert a value into [tree]|Delete a value from [tree]|Serialise [tree] "
    "to a string and back|Return the nodes of [tree] at depth `k`|Return all root-to-leaf paths of [tree] whose "
    "sum is `target`|Mirror [tree]|Flatten [tree] into a list in [walk]|Build [tree] from a sorted list|Prune "
    "the leaves of [tree] that are [dpred]|Count the nodes of [tree] that are [dpred]|Print [tree] as an "
    "indented outline",
    "tmeasure": "height|number of leaves|diameter|sum of all values|maximum width|number of nodes|minimum "
    "depth|average of each level|maximum root-to-leaf sum|sum of left leaves|largest value of each level",
    "walk": "pre-order|in-order|post-order|level order|zigzag level order|reverse level order",
    "tprop": "balanced|symmetric|a valid search tree|complete|equal to another tree|a subtree of another tree|full",
    "tfind": "lowest common ancestor of two nodes|kth smallest value|deepest node|successor of a node|path to a value|"
    "closest value to `target`|first leaf from the left|parent of a node",
    "graph": "a directed graph given as an adjacency list|an undirected graph given as a list of edges|a weighted "
    "graph given as a dictionary of dictionaries|a graph given as an adjacency matrix|a graph given as a "
    "dictionary of sets",
    "graph_task": "Return [gfind] in [graph]|Check whether [graph] [gprop]|Count [gcount] of [graph]|Traverse "
    "[graph] in [gwalk] order from a start node|Convert [graph] to [gform]|Remove [gremove] from [graph]",
    "gfind": "the shortest path between two nodes|all nodes reachable from a start node|a topological order|the "
    "connected components|all simple paths between two nodes|a minimum spanning tree|the nodes with the highest "
    "degree|a cycle, or None|the distance from a start node to every other node|the bridges|a valid colouring "
    "with `k` colours|the common neighbours of two nodes|the strongly connected components|the nodes within [k] "
    "steps of a start node|the diameter",
    "gprop": "contains a cycle|is connected|is bipartite|is a tree|has an Eulerian path|is complete|has a node without "
    "edges|has a path of length [k]|is a directed acyclic graph",
    "gcount": "the edges|the connected components|the triangles|the nodes of degree [k]|the self-loops|the isolated "
    "nodes|the paths of length [k]|the leaves",
    "gwalk": "breadth-first|depth-first|lexicographic breadth-first|iterative depth-first",
    "gform": "an edge list|an adjacency matrix|its transpose|its complement|a dictionary of degrees|DOT text",
    "gremove": "all self-loops|duplicate edges|a node and its edges|the nodes of degree [k]|edges with weight below "
    "[n]",
    "dpred": "even|negative|greater than [n]|odd|leaves|equal to `target`|smaller than their parent",
}

_TEXTS: Slots = {
    "source": "a web server access log|a CSV file|a JSON Lines file|a plain text file|a list of log lines|an INI "
    "file|a Markdown document|a list of file names|a bank statement in CSV|an email header|a YAML-like key: "
    "value text|a list of URLs|a chat transcript|an SRT subtitle file|a configuration file of KEY=VALUE lines|a "
    "requirements.txt file|a diff",
    "extract": "the number of lines that contain a given word|the [k] most frequent entries|the lines that match a "
    "regular expression|the entries of a given day|the longest line|the blank and comment lines removed|a "
    "dictionary of its fields|the duplicated entries|the errors grouped by hour|the lines between two "
    "markers|the numbers it contains and their sum|the entries sorted by time|the entries that are malformed|a "
    "table aligned in columns|the unique values of one field|the first [k] and the last [k] entries|a summary "
    "with counts per type|the sections as a list of titles",
}

_NUMBER: Slots = {
    "number_task": "Return the [dmeasure] of a positive integer|Check whether a positive integer is [nprop]|Return "
    "all numbers up to `n` that are [nprop]|Return the first `n` terms of [seq]|Return the `n`-th term of "
    "[seq]|Return the smallest number greater than `n` that is [nprop]|Count the numbers from `a` to `b` that "
    "are [nprop]|Return the sum of the first `n` terms of [seq]|Check whether a number belongs to "
    "[seq]|Approximate [const] to `digits` digits|Convert an integer from base `a` to base `b`|Return the "
    "[dmeasure] of each number in a list|Find the pair of numbers up to `n` with the largest [dmeasure]|Compute "
    "[calc]|Return the numbers up to `n` sorted by their [dmeasure]|Return the number up to `n` that has the "
    "largest [dmeasure]",
    "dmeasure": "sum of digits|product of non-zero digits|number of digits|digital root|number of divisors|sum of "
    "proper divisors|number of set bits|largest prime factor|smallest prime factor|number of trailing zeros in "
    "binary|reversed value|largest digit|number of distinct digits|number of steps to reach 1 in the Collatz "
    "process|sum of squared digits|prime factorisation|number of steps of the Kaprekar routine|difference "
    "between its largest and smallest digit",
    "nprop": "prime|perfect|abundant|a palindrome|a perfect power|an Armstrong number|happy|a Harshad "
    "number|square-free|semiprime|a palindrome in binary|automorphic|deficient|a Smith number|a Kaprekar "
    "number|a pronic number|evil (an even number of set bits)|an emirp|pandigital|a product of two consecutive "
    "primes|a sum of two squares",
    "seq": "the Fibonacci sequence|the Lucas numbers|the triangular numbers|the Catalan numbers|the Collatz sequence "
    "of a number|the look-and-say sequence|the pentagonal numbers|the Pell numbers|the Bell numbers|a geometric "
    "progression|an arithmetic progression|the Padovan sequence|the prime numbers|the tribonacci numbers|the "
    "Thue-Morse sequence|Pascal's triangle, row by row|the Farey sequence|the ugly numbers|the Stern-Brocot "
    "sequence|the Jacobsthal numbers|the Recaman sequence|the factorials|the hexagonal numbers|the happy "
    "numbers|the Golomb sequence",
    "const": "pi|e|the golden ratio|the square root of 2|the natural logarithm of 2|the square root of a number",
    "calc": "the greatest common divisor of a list of integers|the least common multiple of a list of "
    "integers|`base` to the power `exp` modulo `mod`|a binomial coefficient without factorials|the integer "
    "square root by Newton's method|the monthly payment of a loan|compound interest with [k] periods a year|the "
    "distance between two points on a sphere|the area of a polygon from its vertices|the roots of a quadratic "
    "equation|the modular inverse of a number|the weighted average of a list|the correlation of two lists|the "
    "dot product of two vectors|the angle between clock hands|the tax of an income from a list of brackets|the "
    "change for an amount with the fewest coins|the body mass index with its category|the standard deviation of "
    "a sample|the moving average with window `k`|a linear regression through points|the probability of rolling a "
    "sum with `n` dice|the cosine similarity of two vectors|the final price after discounts|the value of a "
    "polynomial by Horner's rule|the partitions of an integer|the Levenshtein distance of two strings|the "
    "intersection of two rectangles|the point of a list that is closest to the origin|the convex hull of a set "
    "of points",
}

_ALGORITHMS: Slots = {
    "algo": "binary search|insertion sort|merge sort|quick sort|heap sort|counting sort|radix sort|bubble "
    "sort|selection sort|shell sort|Dijkstra's algorithm|Bellman-Ford|Floyd-Warshall|Kruskal's algorithm|Prim's "
    "algorithm|breadth-first search|depth-first search|A* search on a grid|topological sort|union-find with path "
    "compression|the sieve of Eratosthenes|Euclid's algorithm|fast exponentiation|Kadane's algorithm|the "
    "Boyer-Moore majority vote|Knuth-Morris-Pratt string search|Rabin-Karp string search|the longest common "
    "subsequence|the longest increasing subsequence|edit distance|the 0/1 knapsack problem|coin change|matrix "
    "chain multiplication|the N-queens problem|a Sudoku solver|generating all permutations|generating all "
    "subsets|generating balanced parentheses|the Tower of Hanoi|reservoir sampling|the Fisher-Yates "
    "shuffle|quickselect|interval scheduling|Huffman coding|run-length compression|a bloom filter|interpolation "
    "search|ternary search|the Josephus problem|word break|longest palindromic substring|minimum window "
    "substring|trapping rain water|merging sorted lists|the two-pointer pair sum|sliding window maximum|the "
    "Miller-Rabin primality test|exponential backoff|binary search on a rotated array|evaluating a postfix "
    "expression|converting infix to postfix|a recursive descent calculator|Levenshtein automaton matching|gray "
    "code generation|the subset sum problem|maximum flow by Edmonds-Karp|Tarjan's strongly connected "
    "components|k-means clustering|k-nearest neighbours|gradient descent for a line|Newton's method|the "
    "bisection method|Simpson's rule|the trapezoidal rule|a random walk|Monte Carlo estimation of pi|the Caesar "
    "cipher|the Vigenere cipher|LZW compression",
    "how": "iteratively|recursively|with a generator|without using built-in sorting|with O(log n) extra space|with "
    "type hints and a docstring|in place where possible|with memoisation|with a short comment for each step|and "
    "also return the number of steps taken|so that it works for any comparable type|with a custom key "
    "function|and raise ValueError for invalid input|using only the standard library|in at most 25 lines|with a "
    "small example in the docstring|and state the time complexity|and a second version that is faster",
    "struct": "stack|queue|deque|linked list|doubly linked list|circular buffer|priority queue|min-heap|LRU "
    "cache|LFU cache|trie|binary search tree|disjoint set|graph|ordered set|hash map with "
    "chaining|matrix|polynomial|fraction|vector|bank account|inventory|library of books|parking lot|shopping "
    "cart|event emitter|rate limiter|undo history|timer|text buffer|phone book|student register|state "
    "machine|card deck|tic-tac-toe game|temperature log|to-do list|moving average|interval set|money "
    "amount|sparse vector|bit set|skip list|segment tree|Fenwick tree|retry policy|in-memory key-value store|job "
    "queue|vending machine|elevator|chess board|URL shortener|thermostat|playlist|ticket booking system",
    "feature": "insertion and removal|iteration with `for`|`len()` and `in`|a readable `__repr__`|equality and "
    "hashing|a maximum capacity|undo of the last change|search by prefix|JSON import and export|thread "
    "safety|lookups in O(1)|a method that clears it|a `copy` method|addition with `+`|sorted output|a "
    "`from_list` class method|a history of changes|input validation|a default value for missing keys|a peek "
    "method|statistics such as count and mean|time-based expiry|a merge method|slicing|a context manager|custom "
    "exceptions|a size limit that drops the oldest entry",
    "decorates": "measures how long a call takes|retries a call up to [k] times|caches results for [k] seconds|logs "
    "the arguments and the result|limits calls to [k] per second|checks the argument types|runs a function in a "
    "thread|counts how often a function was called|times out after [k] seconds|warns that a function is "
    "deprecated|memoises by keyword arguments|registers functions by name|debounces calls|validates return "
    "values|turns exceptions into a default value|makes a class a singleton|adds a `__repr__` to a class|runs a "
    "function only once|traces recursive calls with indentation",
    "manages": "changes the working directory for a while|writes a file atomically|redirects standard output to a "
    "string|measures elapsed time|sets environment variables for a while|locks a file|suppresses given "
    "exceptions|opens several files at once|creates a temporary folder and removes it|rolls back a dictionary "
    "when an error occurs|prints start and end",
    "yields": "yields chunks of [k] items|walks a directory tree for files with a given suffix|merges sorted "
    "iterables|skips items until a condition holds|pairs each item with the next one|reads a file backwards line "
    "by line|flattens nested iterables|yields the Fibonacci numbers below a limit|yields sliding windows of [k] "
    "items|round-robins between iterables|deduplicates while keeping order|yields all permutations of a "
    "list|yields prime numbers forever|yields the lines of a growing file|batches items by a maximum total "
    "size|cycles through items [k] times|yields dates between two dates",
    "wraps": "composes several functions into one|curries a function of [k] arguments|returns a counter with "
    "increment and reset|memoises a recursive function|applies a function [k] times|builds a validator from "
    "rules|partially applies keyword arguments|returns a function that averages the last [k] values|pipes a "
    "value through functions|negates a predicate",
}

_EDGES: dict[str, str] = {
    "numbers": "Return None if the list is empty.|Return 0 for an empty list.|Raise ValueError if the list is "
    "empty.|The list may contain duplicates.|Do not modify the input list.|Use a single pass over the list.|The "
    "list can hold up to a million numbers.|Negative numbers may occur.|Use a list comprehension where it "
    "helps.|Ignore values that are not integers.|Do not use any imports.|Return a new list and leave the input "
    "as it is.|Treat booleans as non-numbers.|If there are ties, the first one wins.|Aim for O(n) time.|The "
    "input may also be a tuple.",
    "text": "Ignore case.|Return an empty string for empty input.|Treat only ASCII letters as letters.|Keep the "
    "original spacing.|Words are separated by single spaces.|Do not use regular expressions.|Use a regular "
    "expression.|Punctuation counts as part of a word.|The input may contain several lines.|Strip leading and "
    "trailing spaces first.|Raise ValueError for an empty string.|Unicode letters must work too.|Return the "
    "result as a new string.|Do not use any imports.",
    "records": "Each record is a dictionary.|Records with missing fields are skipped.|Return an empty result for an "
    "empty list.|Break ties by name.|Use only the standard library.|Do not change the input.|Use collections "
    "where useful.|Records are dataclass instances.|Round averages to two decimals.|Raise KeyError when a field "
    "is missing.",
    "other": "Handle empty input.|Raise ValueError for invalid input.|Use only the standard library.|Add type "
    "hints.|Include a docstring.|Show an example call.|Keep it short.|Explain the approach in one or two "
    "sentences.|State the time complexity.|Avoid recursion.|Do not modify the input.|Make it efficient for large "
    "inputs.|Return None if there is no result.|Add a few assert statements as tests.",
}


@dataclass(frozen=True)
class Domain:
    """A family of tasks: weighted patterns over slots, its arguments as `name: type`, and its edge conditions."""

    name: str
    weight: float
    patterns: tuple[str, ...]
    slots: Slots
    arguments: str
    edges: str


@dataclass(frozen=True)
class Exercise:
    """`task` is an imperative sentence without its full stop; `edge` may be empty; `arguments` are typed."""

    domain: str
    task: str
    edge: str
    arguments: str


DOMAINS = (
    Domain(
        "numbers",
        5,
        (
            "Return the [agg] of the numbers in a list that [pred]",
            "Return [gives] of the elements that [pred]",
            "Return the elements of a list that [pred] and [pred], [order]",
            "Return the [window] with the [size] [measure]",
            "Count the ways to choose a [window] of a list so that its [measure] is [cmp]",
            "Given a list of integers, [move]",
            "Check whether all numbers in a list [pred]",
            "Check whether a list holds more numbers that [pred] than numbers that [pred]",
            "Split a list into the elements that [pred] and the rest",
            "Given two lists of integers, return [two]",
            "Given a list of integers, [move], and then remove the elements that [pred]",
        ),
        _SHARED
        | _NUMBERS
        | {
            "size": "largest|smallest|second largest",
            "cmp": "even|odd|equal to `target`|greater than [n]|divisible by [k]|prime|less than [n]",
            "two": "the elements they share that [pred]|the elements of the first that are not in the second, "
            "[order]|their interleaving|their element-wise [agg2], padding the shorter with zeros|all pairs "
            "whose [measure] is [cmp]|the indices where they differ|whether one is a rotation of the other|their "
            "merged sorted union|the [agg] of the elements that occur in exactly one of them|the length of their "
            "longest common prefix|the pair, one from each, with the [size] difference|the elements of both that "
            "[pred], [order]",
            "agg2": "sum|product|maximum|minimum|difference|average",
        },
        "numbers: List[int]",
        "numbers",
    ),
    Domain(
        "text",
        4,
        (
            "[edit]",
            "[report]",
            "[report], ignoring words shorter than [k] letters",
            "Check whether a string is [check]",
            "Return the strings of a list that are [check]",
            "Convert [convert]",
            "Convert [convert] for every item of a list",
            "Find the words of a sentence that [wpred] and return them [sorder]",
        ),
        _SHARED
        | _STRINGS
        | {
            "wpred": "start and end with the same letter|contain [letter]|are longer than [k] letters|have all "
            "letters distinct|are anagrams of another word|appear exactly [k] times|contain a double letter|are "
            "palindromes|start with [letter]|come before a comma|have more vowels than consonants|are numbers",
        },
        "text: str",
        "text",
    ),
    Domain(
        "records",
        2.5,
        (
            "Given a list of [entity], return [query]",
            "Given a list of dictionaries with the keys 'name', '[field]' and '[group]', return [query]",
            "Given a dictionary that maps names to [field] values, return [name_query]",
            "Given a dictionary, return [dict_query]",
        ),
        _SHARED | _STRINGS | _RECORDS,
        "records: List[dict]",
        "records",
    ),
    Domain("grids", 1.5, ("[matrix]",), _SHARED | _GRIDS, "matrix: List[List[int]]", "other"),
    Domain("times", 1.0, ("[date]",), _SHARED | _TIMES, "dates: List[str]", "other"),
    Domain("trees", 2.0, ("[tree_task]", "[graph_task]"), _SHARED | _TREES, "", "other"),
    Domain("files", 1.0, ("Read [source] and return [extract]",), _SHARED | _TEXTS, "lines: List[str]", "other"),
    Domain("number", 2.5, ("[number_task]",), _SHARED | _NUMBER, "n: int", "other"),
    Domain("algorithms", 1.5, ("Implement [algo] [how]",), _SHARED | _ALGORITHMS, "", "other"),
    Domain(
        "classes",
        1.0,
        (
            "Implement a class for a [struct] with [feature] and [feature]",
            "Implement a class for a [struct] that supports [feature]",
            "Write a decorator that [decorates]",
            "Write a context manager that [manages]",
            "Write a generator function that [yields]",
            "Write a higher-order function that [wraps]",
        ),
        _SHARED | _ALGORITHMS,
        "",
        "other",
    ),
)


_FIXED = frozenset({"entity", "field", "group"})


def expand(pattern: str, slots: Slots, random: random.Random) -> str:
    """The pattern with every `[slot]` replaced by one of its phrases; a record keeps its kind and fields throughout."""
    chosen: Slots = {}

    def choose(match: re.Match[str]) -> str:
        slot = match.group(1)
        if slot not in slots:
            return match.group(0)
        phrase = chosen.get(slot) or fill(random.choice(slots[slot].split("|")))
        if slot in _FIXED:
            chosen[slot] = phrase
        return phrase

    def fill(text: str) -> str:
        return re.sub(r"\[([a-z_0-9]+)\]", choose, text)

    return fill(pattern)


def _repeats(task: str) -> bool:
    """Whether a drawn task says the same thing twice, as "that are even and are even"."""
    words = task.split()
    triples = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return len(set(triples)) < len(triples) or re.search(r"\b(\w+\s\w+) (and|with|to|from) \1\b", task) is not None


def exercises(count: int, seed: int) -> list[Exercise]:
    """Up to `count` exercises with distinct tasks, in a random but fixed order."""
    generator = random.Random(seed)
    weights = [domain.weight for domain in DOMAINS]
    found: dict[str, Exercise] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        domain = generator.choices(DOMAINS, weights)[0]
        task = expand(generator.choice(domain.patterns), domain.slots, generator)
        edge = generator.choice(_EDGES[domain.edges].split("|")) if generator.random() < 0.45 else ""
        # Small families may ask the same thing again under another condition.
        key = task.lower() + ("" if domain.weight > 2.4 else edge)
        if key not in found and not _repeats(task):
            found[key] = Exercise(domain.name, task, edge, domain.arguments)
    return list(found.values())
