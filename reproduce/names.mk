# Text of a user in rules: quoted for the shell, or checked where it becomes part of a file's name.

quoted  = '$(subst ','\'',$1)'
space  := $() $()

# Not empty if the text is letters, digits, `-`, `_` and `.`, the first a letter or digit.
is_name = $(shell LC_ALL=C; case $(call quoted,$1) in \
  (''|[!A-Za-z0-9]*|*[!A-Za-z0-9_.-]*) ;; (*) echo yes ;; esac)

# Stop unless each word of every variable named is such a text.
check_words = $(foreach list,$1,$(if $(call is_name,x$(subst $(space),,$(value $(list)))),,\
  $(error $(list)=$(value $(list)) is to be letters, digits, '-', '_' and '.')))

# A plain name for a path or source: its last part, without the suffix of an archive or a list.
name_of = $(shell printf %s $(call quoted,$1) | LC_ALL=C sed -E 's:/+$$::; s:.*/::; \
  s/\.(tar|tgz|zip|csv|tsv|jsonl)(\.[a-z0-9]+)?$$//; s/[^A-Za-z0-9_.-]+/-/g; s/^[^A-Za-z0-9]+//; s/-+$$//')
