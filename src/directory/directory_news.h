/* SPDX-License-Identifier: Apache-2.0 */
/* directory_news.h - what comes about in a directory, as lines of its log. */
#ifndef WEIR_DIRECTORY_DIRECTORY_NEWS_H
#define WEIR_DIRECTORY_DIRECTORY_NEWS_H

#include "directory/store.h"

/* One line: of level WARN where somebody may have to look, else INFO. */
void weir_directory_news_log(const weir_store_notice *notice);

#endif
