// What a visitor can click.

export const CHAT = [
  { title: "A palindrome check", text: "Write a Python function is_palindrome(s) that ignores case and punctuation, with a doctest." },
  { title: "Merge two sorted lists", text: "Write a Python function that merges two sorted lists into one sorted list." },
  { title: "A bounded cache", text: "Write a Python class LRUCache with get and put, on top of OrderedDict." },
  { title: "Debounce in JavaScript", text: "Write a JavaScript function debounce(fn, ms)." },
];

export const FILL = [
  {
    title: "Mean",
    language: "python",
    before: "def mean(values):\n    total = ",
    after: "\n    return total / len(values)\n",
  },
  {
    title: "Binary search",
    language: "python",
    before: "def search(items, wanted):\n    low, high = 0, len(items) - 1\n    while low <= high:\n        middle = (low + high) // 2\n",
    after: "\n    return -1\n",
  },
  {
    title: "Sum of squares",
    language: "javascript",
    before: "function sumOfSquares(numbers) {\n  return numbers.",
    after: ";\n}\n\nconsole.log(sumOfSquares([1, 2, 3])); // 14\n",
  },
];

export const RACE = "Write a Python function that merges two sorted lists into one sorted list, with a docstring.";
